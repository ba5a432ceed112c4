//! The GPUs of this run: what `quotas.toml` said when the server started. Their memory may change while it runs, they
//! may not.

use ringfence_sandbox::{UnknownDriver, VulkanDriver};
use ringfence_scheduler::GpuId;
use ringfence_scheduler::quotas::{Gpu as GpuQuota, GpuDriver, Quotas};

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gpu {
    /// As in `[devices.NAME]`.
    pub(crate) name: String,
    /// Whose driver, and which card.
    pub(crate) driver: VulkanDriver,
}

/// All of them; the scheduler numbers them by their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gpus(Vec<Gpu>);

/// A section that names no card.
#[derive(Debug, thiserror::Error)]
#[error("devices.{name}.node: {source}")]
pub(crate) struct GpuError {
    /// Whose.
    pub(crate) name: String,
    source: UnknownDriver,
}

impl Gpus {
    /// From the quotas.
    ///
    /// # Errors
    /// A node that is none of its driver.
    pub(crate) fn of(quotas: &Quotas) -> Result<Self, GpuError> {
        let gpu = |(name, quota): (&String, &GpuQuota)| {
            let node = quota.node.as_deref();
            let words: Vec<&str> = match quota.driver {
                GpuDriver::Software => vec!["vulkan-software"],
                GpuDriver::Mesa => ["vulkan-mesa"].into_iter().chain(node).collect(),
                GpuDriver::Nvidia => ["vulkan-nvidia"].into_iter().chain(node).collect(),
            };
            let driver = VulkanDriver::parse(&words);
            let driver = driver.map_err(|source| GpuError { name: name.clone(), source })?;
            Ok(Gpu { name: name.clone(), driver })
        };
        quotas.gpus.iter().map(gpu).collect::<Result<_, _>>().map(Self)
    }

    /// The one of this number, if there is.
    pub(crate) fn get(&self, id: GpuId) -> Option<&Gpu> {
        self.0.get(usize::from(id.0))
    }

    /// In order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Gpu> {
        self.0.iter()
    }

    /// The drivers whose memory these quotas give away, each once.
    pub(crate) fn drivers_in_use(&self, quotas: &Quotas) -> Vec<VulkanDriver> {
        let mut drivers = Vec::new();
        for gpu in &self.0 {
            let gives = quotas.gpus.get(&gpu.name).is_some_and(|quota| quota.memory_mib > 0);
            if gives && !drivers.contains(&gpu.driver) {
                drivers.push(gpu.driver);
            }
        }
        drivers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Gpus, GpuError> {
        Gpus::of(&Quotas::parse(text).unwrap_or_else(|error| panic!("{error}")))
    }

    #[test]
    fn gpus_are_those_of_the_file_in_order_of_name() {
        let text = "[devices.soft]\nmemory_mib = 1\n[devices.card]\ndriver = \"mesa\"\nnode = \"/dev/dri/renderD129\"\n";
        let gpus = of(text).expect("they are legal");
        let names: Vec<&str> = gpus.iter().map(|gpu| gpu.name.as_str()).collect();
        assert_eq!(names, ["card", "soft"]);
        assert_eq!(gpus.get(GpuId(0)).map(|gpu| gpu.driver), Some(VulkanDriver::Mesa { node: 129 }));
        assert_eq!(gpus.get(GpuId(2)), None);
        let quotas = Quotas::parse(text).expect("they are legal");
        assert_eq!(gpus.drivers_in_use(&quotas), [VulkanDriver::Software]);
        assert_eq!(of("").expect("the default").iter().count(), 1);
    }

    #[test]
    fn a_node_that_is_none_is_refused_by_the_section() {
        let error =
            of("[devices.card]\ndriver = \"nvidia\"\nnode = \"/dev/nvidia0\"\n").expect_err("no number");
        assert!(error.to_string().starts_with("devices.card.node: "), "{error}");
    }
}

//! Health by asking: a small job for each loaded model that has not answered for a while.

use super::job::{AudioSource, JobInput, JobRequest, Purpose, seal};
use super::{Dispatcher, SYSTEM};
use crate::audit::Who;
use crate::clock;
use ringfence_protocol::{
    Architecture, EmbedInput, GenerateInput, GenerateOptions, Item, Prompt, TranscribeOptions,
};
use ringfence_scheduler::ModelId;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// A loaded model is asked when its last answer is this old.
const PERIOD: Duration = Duration::from_secs(10);

/// How often it is looked which models are due.
const LOOK: Duration = Duration::from_secs(1);

/// How long a canary may take before its model counts as failing.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A tenth of a second at 16 kHz and 16 bits.
const SILENCE_BYTES: usize = 3_200;

/// The head of a WAV file with so many bytes of one channel of 16 bits at 16 kHz.
const WAV_HEAD: [u8; 44] = {
    let mut head = *b"RIFF____WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data____";
    let (file, data) = ((SILENCE_BYTES as u32 + 36).to_le_bytes(), (SILENCE_BYTES as u32).to_le_bytes());
    let mut at = 0;
    while at < 4 {
        (head[4 + at], head[40 + at]) = (file[at], data[at]);
        at += 1;
    }
    head
};

/// A file of silence.
fn silence() -> std::io::Result<Arc<OwnedFd>> {
    let mut file = File::from(memfd_create("canary", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(&WAV_HEAD)?;
    file.write_all(&[0; SILENCE_BYTES])?;
    seal(file)
}

impl Dispatcher {
    /// Sends canaries for as long as the server runs.
    pub(crate) async fn keep_asking(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            for (model, name) in self.due() {
                tokio::spawn(self.clone().ask(model, name));
            }
        }
    }

    /// Loaded models without an answer for a period. The scheduler refuses a canary where a job runs: that job's step
    /// limit finds a worker that hangs.
    fn due(&self) -> Vec<(ModelId, String)> {
        let state = self.lock();
        let snapshot = state.scheduler.snapshot();
        let now = clock::instant();
        let due = state.models.iter().filter(|(id, model)| {
            let loaded = snapshot.models.iter().any(|now| now.model == *id && now.ready > 0);
            let answered = model.health.answered;
            loaded && answered.is_none_or(|at| now.duration_since(at) >= PERIOD)
        });
        due.map(|(id, model)| (id, model.name.clone())).collect()
    }

    /// A small input of the kind that the model takes.
    fn canary(&self, name: &str) -> Option<JobInput> {
        let architecture = self.lock().models.named(name)?.architecture;
        match architecture {
            Architecture::Bert => {
                let items = vec![Item::Text("canary".to_owned())];
                Some(JobInput::Items(EmbedInput { items, truncate: true }))
            }
            Architecture::Llama => {
                let options =
                    GenerateOptions { max_tokens: Some(1), temperature: 0.0, ..GenerateOptions::default() };
                let prompt = Prompt::Text("canary".to_owned());
                let input = GenerateInput { prompt, options };
                Some(JobInput::Generate { input: Box::new(input), file: None, pieces: None })
            }
            Architecture::Whisper => match silence() {
                Ok(memfd) => {
                    let source =
                        AudioSource::Sealed { memfd, bytes: (WAV_HEAD.len() + SILENCE_BYTES) as u64 };
                    let language = Some("en".to_owned());
                    let options = TranscribeOptions {
                        translate: false,
                        language,
                        prompt: None,
                        temperature: Some(0.0),
                    };
                    Some(JobInput::Audio { options, source, pieces: None })
                }
                Err(error) => {
                    tracing::warn!(%error, "no memory for a canary");
                    None
                }
            },
        }
    }

    async fn ask(self: Arc<Self>, model: ModelId, name: String) {
        let Some(input) = self.canary(&name) else { return };
        let request = JobRequest {
            client: SYSTEM.to_owned(),
            request_id: "canary".to_owned(),
            who: Who::server(),
            model: name.clone(),
            input,
            received: clock::instant(),
            deadline: Some(ANSWER_MAX),
            dimensions: None,
            purpose: Purpose::Canary,
        };
        if let Err(error) = self.run(request).await {
            // A worker with work is not asked; its step limit decides whether it hangs.
            if error.code() != "not_idle" && error.code() != "draining" && error.code() != "model_unknown" {
                tracing::warn!(model = name, code = error.code(), "canary failed");
                self.lock().models.canary_failed(model);
            }
        }
    }
}

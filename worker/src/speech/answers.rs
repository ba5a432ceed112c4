//! What a job asks for and how it can fail, in the words of the models and of the link.

use crate::memory::{Refusal, job_error};
use crate::models::whisper::transcription::{Options, StartError, StepError};
use crate::models::whisper::vocabulary::Task;
use crate::serve::End;
use crate::sound::SoundError;
use ringfence_protocol::{AudioFault, JobError, TranscribeOptions};

/// Why a piece of work failed.
pub(crate) enum Failed {
    /// For the job alone.
    Job(JobError),
    /// For the worker.
    Worker(End),
}

impl From<JobError> for Failed {
    fn from(error: JobError) -> Self {
        Self::Job(error)
    }
}

pub(super) fn options(options: &TranscribeOptions) -> Options {
    let TranscribeOptions { translate, language, prompt, temperature } = options.clone();
    let task = if translate { Task::Translate } else { Task::Transcribe };
    let default = Options { language, task, prompt, ..Options::default() };
    match temperature {
        // Nothing was asked for, or what is the beginning of the usual ones.
        None | Some(0.0) => default,
        Some(temperature) => Options { temperatures: vec![temperature], ..default },
    }
}

pub(super) fn refused(error: SoundError) -> JobError {
    let fault = match error {
        SoundError::Format => AudioFault::Format,
        SoundError::Truncated => AudioFault::Truncated,
        SoundError::NoAudio => AudioFault::Silent,
        SoundError::Codec => AudioFault::Codec,
        SoundError::TooLong => AudioFault::TooLong,
        SoundError::Channels => AudioFault::Channels,
        SoundError::Rate => AudioFault::Rate,
    };
    JobError::AudioRefused { fault }
}

pub(crate) fn of_job(refusal: Refusal) -> Failed {
    match refusal {
        Refusal::Denied(denial) => Failed::Job(job_error(denial)),
        Refusal::Failed(failure) => Failed::Worker(failure.into()),
    }
}

pub(crate) fn of_start(error: StartError) -> Failed {
    match error {
        StartError::LanguageUnknown { language } => Failed::Job(JobError::LanguageUnknown {
            what: format!("the language {language} is not known to it"),
        }),
        StartError::EnglishOnly => {
            Failed::Job(JobError::LanguageUnknown { what: "it knows English only".to_owned() })
        }
        StartError::Prompt | StartError::Temperature => Failed::Job(JobError::Tokenizer { item: 0 }),
        StartError::Refused(refusal) => of_job(refusal),
    }
}

pub(super) fn of_step(error: StepError) -> Failed {
    match error {
        StepError::Device(failure) => Failed::Worker(failure.into()),
        StepError::NotFinite => Failed::Job(JobError::NotFinite { item: 0 }),
        StepError::Tokenizer => Failed::Job(JobError::Tokenizer { item: 0 }),
    }
}

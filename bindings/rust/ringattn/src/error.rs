//! Why a call failed.

use std::fmt;

use crate::docs::c_doc;
use crate::record::text;
use crate::{library, sys, Status};

/// A result whose error is the library's.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed: where it is an argument, the message names the field as it is called in C, its
/// value and the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Error {
    status: Status,
    rank: i32,
    cuda_error: i32,
    nccl_result: i32,
    message: String,
}

impl Error {
    /// What kind of failure it is; never [`Status::Success`].
    pub fn status(&self) -> Status {
        self.status
    }

    /// The rank that broke the group, the same on every rank; `None` where no single one did, and
    /// where the failure is of this call alone, as refused arguments are.
    pub fn rank(&self) -> Option<i32> {
        (self.rank >= 0).then_some(self.rank)
    }

    #[doc = c_doc!(ra_error::cuda_error)]
    pub fn cuda_error(&self) -> i32 {
        self.cuda_error
    }

    #[doc = c_doc!(ra_error::nccl_result)]
    pub fn nccl_result(&self) -> i32 {
        self.nccl_result
    }

    /// What was wrong, with the numbers.
    pub fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn new(status: Status, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            status,
            rank: -1,
            cuda_error: 0,
            nccl_result: 0,
            message,
        }
    }

    pub(crate) fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(Status::InvalidArgument, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.message)
    }
}

impl std::error::Error for Error {}

/// What a function of the library returns, which may say that it failed.
pub(crate) trait Outcome {
    fn is_failure(&self) -> bool;
}

impl Outcome for sys::ra_status {
    fn is_failure(&self) -> bool {
        *self != sys::RA_STATUS_SUCCESS
    }
}

impl Outcome for i64 {
    fn is_failure(&self) -> bool {
        *self < 0
    }
}

impl<T> Outcome for *mut T {
    fn is_failure(&self) -> bool {
        self.is_null()
    }
}

/// Calls `function`, one of the library's, with an `ra_error`, which is returned if it failed. Every
/// call that can fail goes through here, so that none reaches a library which this crate does not fit.
pub(crate) fn call<T: Outcome>(function: impl FnOnce(*mut sys::ra_error) -> T) -> Result<T> {
    library::check()?;
    let mut raw = sys::ra_error::default();
    let outcome = function(&mut raw);
    if !outcome.is_failure() {
        return Ok(outcome);
    }
    Err(Error {
        status: Status::from_raw(raw.status),
        rank: raw.rank,
        cuda_error: raw.cuda_error,
        nccl_result: raw.nccl_result,
        message: text(&raw.message),
    })
}

//! Log messages.

use std::ffi::{c_char, c_void, CStr};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

use crate::{library, sys, LogLevel, Result};

/// Receives one line of the log. It may be called from any thread, also from several at once, and
/// must not call the library. A panic in it goes no further than to the panic hook.
pub type LogCallback = Box<dyn Fn(LogLevel, &str) + Send + Sync>;

/// Sends log messages of `min_level` and above to `callback`; `None`, the initial state, discards
/// them. For the whole process. When it returns, no call of the earlier callback is in progress, and
/// that has been dropped. Errors: only that of a library whose version does not fit.
///
/// ```
/// use ringattn::{set_log, LogLevel};
///
/// set_log(LogLevel::Info, Some(Box::new(|level, line| eprintln!("{level}: {line}"))))?;
/// # set_log(LogLevel::Info, None)?;
/// # Ok::<(), ringattn::Error>(())
/// ```
pub fn set_log(min_level: LogLevel, callback: Option<LogCallback>) -> Result<()> {
    /// The callback that the library has, so that it can be dropped when it has another.
    struct Installed(*mut LogCallback);
    // SAFETY: a LogCallback may be dropped on any thread.
    unsafe impl Send for Installed {}
    static INSTALLED: Mutex<Option<Installed>> = Mutex::new(None);

    library::check()?;
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    let next = callback.map(|callback| Box::into_raw(Box::new(callback)));
    let data = next.map_or(std::ptr::null_mut(), |callback| callback.cast::<c_void>());
    let function: sys::ra_log_callback = next.and(Some(receive));
    // SAFETY: `data` is what `receive` expects, and is freed only when the library has another.
    unsafe { sys::ra_set_log_callback(function, data, min_level as i32) };
    let former = std::mem::replace(&mut *installed, next.map(Installed));
    drop(installed);
    if let Some(Installed(callback)) = former {
        // SAFETY: Box::into_raw gave it, and the library calls it no more.
        drop(unsafe { Box::from_raw(callback) });
    }
    Ok(())
}

unsafe extern "C" fn receive(level: i32, message: *const c_char, callback: *mut c_void) {
    // SAFETY: the library gives the data that belongs to this function, and text that is valid
    // during the call.
    let (callback, message) =
        unsafe { (&*callback.cast::<LogCallback>(), CStr::from_ptr(message)) };
    let call = || callback(LogLevel::from_raw(level), &message.to_string_lossy());
    if let Err(panic) = catch_unwind(AssertUnwindSafe(call)) {
        // To drop what it carries might panic again.
        if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(again);
        }
    }
}

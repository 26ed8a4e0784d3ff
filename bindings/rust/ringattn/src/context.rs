//! A rank's membership in its group.

use std::ffi::CStr;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use crate::docs::c_doc;
use crate::error::call;
use crate::record::{c_string, characters, text};
use crate::{
    sys, AttentionDesc, Backend, CallStatistics, ContextConfig, ContextInfo, Error,
    MemoryRequirements, Result, Status, Transport,
};

/// Names a group of ranks that is about to form. Text, so that any channel can carry it; it is a
/// credential, and `{:?}` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct UniqueId(String);

impl UniqueId {
    /// Makes an id for one new group of ranks; one rank does it and gives the text to the others.
    ///
    /// `bind_address` is the address that rank 0 will listen on ("host" or "host:port"); `None` is
    /// loopback, and a must with [`Transport::Local`] and [`Transport::Nccl`]. An id of the local
    /// transport is valid in the process that made it, for one group at a time. One of NCCL is an
    /// ncclUniqueId, which NCCL listens for in this process: it has to live until the group has
    /// formed. Otherwise an id holds no resource.
    ///
    /// Errors: [`Status::InvalidArgument`], [`Status::NotSupported`] (this build or machine lacks
    /// the transport), [`Status::NcclError`].
    pub fn new(transport: Transport, bind_address: Option<&str>) -> Result<Self> {
        let bind_address = c_string("bind_address", &bind_address)?;
        let bind_address = characters(&bind_address);
        let mut id = sys::ra_unique_id::default();
        // SAFETY: the id is ours, and the address is NULL or text that lives as long as the call.
        call(|e| unsafe { sys::ra_create_unique_id(&mut id, transport as i32, bind_address, e) })?;
        Ok(Self(text(&id.text)))
    }

    /// What another rank makes its `UniqueId` from.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UniqueId(..)")
    }
}

impl AsRef<str> for UniqueId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl From<String> for UniqueId {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for UniqueId {
    fn from(text: &str) -> Self {
        Self(text.to_string())
    }
}

impl From<&UniqueId> for UniqueId {
    fn from(id: &UniqueId) -> Self {
        id.clone()
    }
}

/// One rank's membership in a group of ranks, with its threads, its engine and its memory.
///
/// *Collective*, below, means that every rank of the group makes the same calls in the same order;
/// ranks of the local transport make them each from a thread of its own. All other functions are
/// local and do not block.
///
/// A context may go from thread to thread, but is used by one at a time: it is [`Send`] and not
/// [`Sync`].
///
/// ```compile_fail,E0277
/// fn shared(context: ringattn::Context) {
///     std::thread::scope(|scope| {
///         scope.spawn(|| context.info());
///     });
/// }
/// ```
///
/// Dropping it leaves the group and frees everything, without waiting for other ranks, which get
/// [`Status::PeerLost`] if they were still waiting for this one. On CUDA it waits until what calls
/// have enqueued is over; graphs that calls were captured in hold the context's memory, and may not
/// be launched any more.
#[derive(Debug)]
pub struct Context {
    raw: NonNull<sys::ra_context>,
    backend: Backend,
    shared: AbortHandle,
}

// SAFETY: the library ties a context to no thread.
unsafe impl Send for Context {}

impl Context {
    /// Joins this rank to its group.
    ///
    /// Collective and blocking: returns when all `world_size` ranks have joined, at the latest
    /// after `timeout_ms`. With a world size of 1 it returns at once.
    ///
    /// Errors: [`Status::InvalidArgument`], [`Status::NotSupported`] (backend, transport or engine;
    /// the message says what is missing), [`Status::OutOfMemory`], [`Status::CudaError`],
    /// [`Status::NcclError`] (as where two ranks of a group have one GPU), [`Status::Timeout`]
    /// (naming the first absent rank, but not over NCCL), [`Status::Mismatch`] (ranks disagree on
    /// the world size, or a rank came twice), [`Status::PeerLost`]. A call that is refused uses up
    /// the id too: the group cannot form any more, and all ranks begin again with a new one.
    ///
    /// ```
    /// use ringattn::{Context, ContextConfig, Transport, UniqueId};
    ///
    /// let id = UniqueId::new(Transport::Local, None)?;
    /// let config = ContextConfig::new().world_size(2).unique_id(&id);
    /// let join = |rank| {
    ///     let config = config.clone().rank(rank);
    ///     std::thread::spawn(move || Context::new(&config))
    /// };
    /// for (rank, thread) in (0..2).map(|rank| (rank, join(rank))).collect::<Vec<_>>() {
    ///     assert_eq!(thread.join().unwrap()?.info()?.rank, rank);
    /// }
    /// # Ok::<(), ringattn::Error>(())
    /// ```
    pub fn new(config: &ContextConfig) -> Result<Self> {
        // SAFETY: the config is one of C, and lives as long as the call.
        let create = |config: &_| call(|error| unsafe { sys::ra_create_context(config, error) });
        let raw = config.with_raw(create)?;
        let raw = NonNull::new(raw).expect("a call that succeeded gives a context");
        let shared = AbortHandle(Arc::new(Mutex::new(Open(Some(raw)))));
        Ok(Self {
            raw,
            backend: config.backend,
            shared,
        })
    }

    /// What ends its calls from another thread.
    pub fn abort_handle(&self) -> AbortHandle {
        self.shared.clone()
    }

    /// What it is, with everything that its config left to the library.
    pub fn info(&self) -> Result<ContextInfo> {
        // SAFETY: the record is one that its function initialised; the context lives as long as
        // self, here and below.
        ContextInfo::filled(|record, error| unsafe {
            sys::ra_get_context_info(self.raw(), record, error)
        })
    }

    /// That it can run `desc` forward and backward: with which engine, and on CUDA why another does
    /// not, as "forward: cudnn; backward: portable (not cudnn: ...)". Blocks that a rank finds it
    /// cannot leave to cuDNN go to "portable" all the same; log messages of
    /// [`LogLevel::Debug`](crate::LogLevel::Debug) say of each block which engine had it, and why.
    /// Local.
    ///
    /// Errors: [`Status::NotSupported`] with the reason, or [`Status::InvalidArgument`] with the
    /// field, its value and the limit.
    pub fn check_support(&self, desc: &AttentionDesc) -> Result<String> {
        let mut engines = String::new();
        desc.with_raw(|desc| {
            call(|error| {
                // SAFETY: desc is one of C, and error is valid and has a message when it returns.
                let (status, message) = unsafe {
                    let status = sys::ra_check_support(self.raw(), desc, error);
                    (status, CStr::from_ptr((*error).message.as_ptr()))
                };
                engines = message.to_string_lossy().into_owned();
                status
            })
        })?;
        Ok(engines)
    }

    /// What this rank needs for `desc`, and what its calls will do. Local; allocates nothing
    /// lasting. Errors: as [`Context::check_support`].
    pub fn memory_requirements(&self, desc: &AttentionDesc) -> Result<MemoryRequirements> {
        desc.with_raw(|desc| {
            // SAFETY: desc is one of C, and the record one that its function initialised.
            MemoryRequirements::filled(|record, error| unsafe {
                sys::ra_get_memory_requirements(self.raw(), desc, record, error)
            })
        })
    }

    /// What the last completed [`Context::forward`], [`Context::backward`], [`Context::mha_forward`],
    /// [`Context::mha_backward`], [`Context::all_reduce`] or [`Context::decode`] did; all 0 before the
    /// first. Local.
    pub fn statistics(&self) -> Result<CallStatistics> {
        // SAFETY: the record is one that its function initialised.
        CallStatistics::filled(|record, error| unsafe {
            sys::ra_get_call_statistics(self.raw(), record, error)
        })
    }

    #[doc = c_doc!(ra_get_async_error)]
    pub fn async_error(&self) -> Result<()> {
        self.shared.async_error()
    }

    #[doc = c_doc!(ra_run_self_test)]
    pub fn run_self_test(&self, num_problems: i64, seed: i64) -> Result<()> {
        // SAFETY: the context is used by one thread, as it is not Sync.
        call(|e| unsafe { sys::ra_run_self_test(self.raw(), num_problems, seed, e) })?;
        Ok(())
    }

    /// Refuses slices on a GPU, which would go on using them after the call.
    pub(crate) fn check_host_memory(&self) -> Result<()> {
        if self.backend == Backend::Cpu {
            return Ok(());
        }
        let message = format!(
            "backend is {}; tensors of it must be of `device`",
            self.backend
        );
        Err(Error::invalid_argument(message))
    }

    /// Refuses them for what has no tensors of `device` either.
    pub(crate) fn check_cpu(&self) -> Result<()> {
        if self.backend == Backend::Cpu {
            return Ok(());
        }
        let message = format!("backend is {}; must be {}", self.backend, Backend::Cpu);
        Err(Error::new(Status::NotSupported, message))
    }

    pub(crate) fn raw(&self) -> *mut sys::ra_context {
        self.raw.as_ptr()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.shared.lock().0 = None; // from here on no other thread reaches the context
                                     // SAFETY: it is alive until here, and no call is in progress, as calls borrow it.
        unsafe { sys::ra_destroy_context(self.raw()) };
    }
}

/// Ends the calls of a context from any thread, and looks after it. It does not keep the context
/// alive: when that was dropped, everything here is [`Status::InvalidState`].
#[derive(Clone, Debug)]
pub struct AbortHandle(Arc<Mutex<Open>>);

/// The context, unless it was dropped.
#[derive(Debug)]
struct Open(Option<NonNull<sys::ra_context>>);

// SAFETY: it is used for what the library allows from any thread, under the mutex that Drop takes.
unsafe impl Send for Open {}

impl AbortHandle {
    #[doc = c_doc!(ra_abort_context)]
    pub fn abort(&self) -> Result<()> {
        // SAFETY: the context is alive while its mutex is held, here and below.
        self.with_context(|context| call(|e| unsafe { sys::ra_abort_context(context, e) }))
    }

    #[doc = c_doc!(ra_get_async_error)]
    pub fn async_error(&self) -> Result<()> {
        // SAFETY: as above.
        self.with_context(|context| call(|e| unsafe { sys::ra_get_async_error(context, e) }))
    }

    fn with_context(
        &self,
        function: impl FnOnce(*mut sys::ra_context) -> Result<sys::ra_status>,
    ) -> Result<()> {
        match self.lock().0 {
            Some(context) => function(context.as_ptr()).map(|_| ()),
            None => Err(Error::new(
                Status::InvalidState,
                "the context has been dropped",
            )),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const _: () = {
    const fn is_send<T: Send>() {}
    const fn is_send_and_sync<T: Send + Sync>() {}
    is_send::<Context>();
    is_send::<crate::KvCache>();
    is_send_and_sync::<AbortHandle>();
    is_send_and_sync::<AttentionDesc>();
    is_send_and_sync::<crate::Activations>();
    is_send_and_sync::<crate::MhaDesc>();
    is_send_and_sync::<ContextConfig>();
    is_send_and_sync::<Error>();
};

//! KV caches, and decoding from them, in host memory.
//!
//! [`KvCache`] owns one of the library's. It borrows no context, since it outlives that which it was
//! made for: [`KvCache::move_to`] gives it to another. A [`Sequence`] is a number, which only means
//! something to the library: one that is not known, or was freed, is an error of the call. Each rank
//! makes the same calls: sequences are created, forked, cut off and freed by methods of the cache;
//! [`Context::append`] stores tokens, and [`Context::decode`], the only one that talks to other ranks,
//! attends queries to them. What changes the library's cache takes it by `&mut`.

use std::mem::size_of;
use std::ptr::NonNull;

use crate::attention::{floats, floats_mut};
use crate::docs::c_doc;
use crate::error::call;
use crate::record::{check_entries, entries};
use crate::{
    sys, AttentionDesc, Context, KvCacheDesc, KvCacheStatistics, Result, Tensor, TensorMut,
};

/// A sequence of a [`KvCache`], by its number, which is the same on every rank and never given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Sequence(pub i64);

/// Keys and values of many sequences that grow token by token, in pages that are spread over the ranks
/// of a context, for [`Context::decode`].
///
/// Page i of a sequence has its tokens i * page_tokens and the page_tokens - 1 behind, and lies on rank
/// (b + i) mod world_size, where b differs from sequence to sequence. Which page is where is known on
/// every rank, without a word between them: all ranks make the same calls with a cache, in the same
/// order. So they get the same sequences, and the same refusal, as where there is no page left on some
/// rank, or a sequence is not known; what is refused has changed nothing. Ranks that have made other
/// calls get [`Status::Mismatch`](crate::Status::Mismatch) from the next [`Context::decode`]. Only that
/// function sends anything; the others are local and do not block.
///
/// A cache outlives its context: [`KvCache::move_to`] takes what the remaining ranks have to another
/// one. It may go from thread to thread, but is used by one at a time: it is [`Send`] and not [`Sync`].
/// Dropping it frees its memory.
#[derive(Debug)]
pub struct KvCache {
    raw: NonNull<sys::ra_kv_cache>,
    desc: KvCacheDesc,
}

// SAFETY: the library ties a cache to no thread.
unsafe impl Send for KvCache {}

impl KvCache {
    /// An empty cache for the ranks of `context`, with memory for all pages of this rank:
    /// `num_pages * page_tokens * num_heads_kv * (head_dim + head_dim_v)` elements, and beside it
    /// some 4 bytes for each page of each rank. Local.
    ///
    /// Errors: [`Status::InvalidArgument`](crate::Status::InvalidArgument),
    /// [`Status::NotSupported`](crate::Status::NotSupported) (the CPU backend has caches),
    /// [`Status::OutOfMemory`](crate::Status::OutOfMemory).
    ///
    /// ```
    /// use ringattn::*;
    ///
    /// let context = Context::new(&ContextConfig::new())?;
    /// let desc = KvCacheDesc::new().num_pages(8).num_heads_kv(1).head_dim(1);
    /// let mut cache = KvCache::new(&context, &desc)?;
    /// let prompt = cache.create_sequence()?;
    /// let (k, v) = ([0.0f32; 3], [1.0f32, 2.0, 6.0]); // all scores are equal
    /// context.append(&mut cache, AppendArgs::new(&[prompt], 3, &k, &v))?;
    ///
    /// let desc = AttentionDesc::new().seqlen_q(1).head_dim(1).mask(Mask::Causal);
    /// let mut out = [0.0f32];
    /// context.decode(&mut cache, &desc, DecodeArgs::new(&[prompt], &[0.0f32], &mut out))?;
    /// assert!((out[0] - 3.0).abs() < 1e-6);
    ///
    /// let guess = cache.fork_sequence(prompt)?; // shares the pages
    /// cache.truncate_sequence(guess, 2)?;
    /// context.decode(&mut cache, &desc, DecodeArgs::new(&[guess], &[0.0f32], &mut out))?;
    /// assert!((out[0] - 1.5).abs() < 1e-6);
    /// cache.free_sequence(guess)?;
    /// assert!(cache.free_sequence(guess).is_err());
    /// # Ok::<(), ringattn::Error>(())
    /// ```
    pub fn new(context: &Context, desc: &KvCacheDesc) -> Result<Self> {
        // SAFETY: the context is alive, and desc one of C that lives as long as the call.
        let create =
            |desc: &_| call(|error| unsafe { sys::ra_create_kv_cache(context.raw(), desc, error) });
        let raw = desc.with_raw(create)?;
        let raw = NonNull::new(raw).expect("a call that succeeded gives a cache");
        Ok(Self {
            raw,
            desc: desc.clone(),
        })
    }

    /// What it was made with.
    pub fn desc(&self) -> &KvCacheDesc {
        &self.desc
    }

    #[doc = c_doc!(ra_create_sequence)]
    pub fn create_sequence(&mut self) -> Result<Sequence> {
        // SAFETY: the cache lives as long as self, and is used by one thread, as it is not Sync, here
        // and below.
        call(|error| unsafe { sys::ra_create_sequence(self.raw(), error) }).map(Sequence)
    }

    #[doc = c_doc!(ra_fork_sequence)]
    pub fn fork_sequence(&mut self, sequence: Sequence) -> Result<Sequence> {
        // SAFETY: as above.
        call(|error| unsafe { sys::ra_fork_sequence(self.raw(), sequence.0, error) }).map(Sequence)
    }

    #[doc = c_doc!(ra_truncate_sequence)]
    pub fn truncate_sequence(&mut self, sequence: Sequence, length: i64) -> Result<()> {
        // SAFETY: as above.
        call(|e| unsafe { sys::ra_truncate_sequence(self.raw(), sequence.0, length, e) })?;
        Ok(())
    }

    #[doc = c_doc!(ra_free_sequence)]
    pub fn free_sequence(&mut self, sequence: Sequence) -> Result<()> {
        // SAFETY: as above.
        call(|error| unsafe { sys::ra_free_sequence(self.raw(), sequence.0, error) })?;
        Ok(())
    }

    #[doc = c_doc!(ra_get_sequence_length)]
    pub fn sequence_length(&self, sequence: Sequence) -> Result<i64> {
        // SAFETY: as above.
        call(|error| unsafe { sys::ra_get_sequence_length(self.raw(), sequence.0, error) })
    }

    #[doc = c_doc!(ra_get_lost_tokens)]
    pub fn lost_tokens(&self, sequence: Sequence, from: i64) -> Result<i64> {
        // SAFETY: as above.
        call(|error| unsafe { sys::ra_get_lost_tokens(self.raw(), sequence.0, from, error) })
    }

    #[doc = c_doc!(ra_kv_cache_statistics)]
    pub fn statistics(&self) -> Result<KvCacheStatistics> {
        // SAFETY: as above, and the record is one that its function initialised.
        KvCacheStatistics::filled(|record, error| unsafe {
            sys::ra_get_kv_cache_statistics(self.raw(), record, error)
        })
    }

    #[doc = c_doc!(ra_move_kv_cache)]
    pub fn move_to(&mut self, context: &Context, former_ranks: &[i32]) -> Result<()> {
        let world_size = i64::from(context.info()?.world_size);
        let list = Some(former_ranks);
        check_entries("former_ranks", &list, "world_size", world_size)?;
        let list = former_ranks.as_ptr();
        // SAFETY: as above; the context is alive, and the list has an entry for each of its ranks.
        call(|e| unsafe { sys::ra_move_kv_cache(self.raw(), context.raw(), list, e) })?;
        Ok(())
    }

    fn raw(&self) -> *mut sys::ra_kv_cache {
        self.raw.as_ptr()
    }
}

impl Drop for KvCache {
    fn drop(&mut self) {
        // SAFETY: it is alive until here, and no call is in progress, as calls borrow it.
        unsafe { sys::ra_destroy_kv_cache(self.raw()) };
    }
}

#[doc = c_doc!(ra_append_args)]
#[derive(Debug)]
pub struct AppendArgs<'a> {
    #[doc = c_doc!(ra_append_args::sequences)]
    pub sequences: &'a [Sequence],
    /// Of k and v, for each sequence, >= 0.
    pub num_tokens: i64,
    #[doc = c_doc!(ra_append_args::lengths)]
    pub lengths: Option<&'a [i64]>,
    #[doc = c_doc!(ra_append_args::positions)]
    pub positions: Option<&'a [i64]>,
    #[doc = c_doc!(ra_append_args::k)]
    pub k: Tensor<'a>,
    #[doc = c_doc!(ra_append_args::v)]
    pub v: Tensor<'a>,
}

impl<'a> AppendArgs<'a> {
    /// All tokens, behind those that are there.
    pub fn new(
        sequences: &'a [Sequence],
        num_tokens: i64,
        k: impl Into<Tensor<'a>>,
        v: impl Into<Tensor<'a>>,
    ) -> Self {
        Self {
            sequences,
            num_tokens,
            lengths: None,
            positions: None,
            k: k.into(),
            v: v.into(),
        }
    }

    /// With lengths.
    pub fn lengths(self, lengths: &'a [i64]) -> Self {
        Self {
            lengths: Some(lengths),
            ..self
        }
    }

    /// With positions.
    pub fn positions(self, positions: &'a [i64]) -> Self {
        Self {
            positions: Some(positions),
            ..self
        }
    }
}

#[doc = c_doc!(ra_decode_args)]
#[derive(Debug)]
pub struct DecodeArgs<'a> {
    #[doc = c_doc!(ra_decode_args::sequences)]
    pub sequences: &'a [Sequence],
    #[doc = c_doc!(ra_decode_args::q)]
    pub q: Tensor<'a>,
    #[doc = c_doc!(ra_decode_args::out)]
    pub out: TensorMut<'a>,
    #[doc = c_doc!(ra_decode_args::lse)]
    pub lse: Option<&'a mut [f32]>,
    #[doc = c_doc!(ra_decode_args::sinks)]
    pub sinks: Option<&'a [f32]>,
}

impl<'a> DecodeArgs<'a> {
    /// Without lse and sinks.
    pub fn new(
        sequences: &'a [Sequence],
        q: impl Into<Tensor<'a>>,
        out: impl Into<TensorMut<'a>>,
    ) -> Self {
        Self {
            sequences,
            q: q.into(),
            out: out.into(),
            lse: None,
            sinks: None,
        }
    }

    /// With lse.
    pub fn lse(self, lse: &'a mut [f32]) -> Self {
        Self {
            lse: Some(lse),
            ..self
        }
    }

    /// With sinks.
    pub fn sinks(self, sinks: &'a [f32]) -> Self {
        Self {
            sinks: Some(sinks),
            ..self
        }
    }
}

impl Context {
    #[doc = c_doc!(ra_append)]
    pub fn append(&self, cache: &mut KvCache, args: AppendArgs<'_>) -> Result<()> {
        self.check_cpu()?;
        args.check_dtypes(&cache.desc)?;
        let num_sequences = args.sequences.len() as i64;
        for (field, list) in [("lengths", &args.lengths), ("positions", &args.positions)] {
            check_entries(field, list, "num_sequences", num_sequences)?;
        }
        let args = sys::ra_append_args {
            struct_size: size_of::<sys::ra_append_args>(),
            num_sequences,
            num_tokens: args.num_tokens,
            sequences: args.sequences.as_ptr().cast(),
            lengths: entries(&args.lengths),
            positions: entries(&args.positions),
            k: args.k.raw,
            v: args.v.raw,
            stream: std::ptr::null_mut(),
        };
        // SAFETY: each list has an entry for each of the sequences, and the tensors are slices of the
        // cache's dtype, whose sizes the library checks. Context and cache are used by one thread, as
        // they are not Sync.
        call(|e| unsafe { sys::ra_append(self.raw(), cache.raw(), &args, e) })?;
        Ok(())
    }

    #[doc = c_doc!(ra_decode)]
    pub fn decode(
        &self,
        cache: &mut KvCache,
        desc: &AttentionDesc,
        args: DecodeArgs<'_>,
    ) -> Result<()> {
        self.check_cpu()?;
        args.check_dtypes(desc)?;
        let (lse, lse_size) = floats_mut(args.lse);
        let (sinks, sinks_size) = floats(args.sinks);
        let args = sys::ra_decode_args {
            struct_size: size_of::<sys::ra_decode_args>(),
            num_sequences: args.sequences.len() as i64,
            sequences: args.sequences.as_ptr().cast(),
            q: args.q.raw,
            out: args.out.raw,
            lse,
            lse_size,
            sinks,
            sinks_size,
            stream: std::ptr::null_mut(),
        };
        // SAFETY: as in `append` and `forward`.
        let decode =
            |desc: &_| call(|e| unsafe { sys::ra_decode(self.raw(), cache.raw(), desc, &args, e) });
        desc.with_raw(decode)?;
        Ok(())
    }
}

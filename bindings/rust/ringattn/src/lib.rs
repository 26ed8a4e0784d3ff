#![doc = include_str!("../README.md")]
//!
//! # The parts
//!
//! | | |
//! |---|---|
//! | [`Context`], [`ContextConfig`], [`UniqueId`] | a rank's membership in its group |
//! | [`AttentionDesc`] | which attention; which tokens of it a rank has |
//! | [`ForwardArgs`], [`BackwardArgs`], [`Tensor`], [`TensorMut`], [`Element`] | what it is computed of, in host memory |
//! | [`device`] | the same in the memory of a GPU |
//! | [`MhaDesc`], [`MhaForwardArgs`], [`MhaBackwardArgs`], [`MhaWeights`], [`MhaGradients`], [`Activations`] | a layer of multi-head attention, from tokens to tokens |
//! | [`KvCache`], [`KvCacheDesc`], [`Sequence`], [`AppendArgs`], [`DecodeArgs`] | keys and values of sequences that grow, over the ranks, and attention to them |
//! | [`merge_attention`] | attention over two sets of keys, from that over each |
//! | [`AbortHandle`] | ends a call from another thread |
//! | [`Error`], [`Status`] | why a call failed |
//! | [`capabilities`], [`estimate_memory`], [`estimate_time`], [`set_log`], [`version`] | of the library, without a context |
#![deny(missing_docs, unsafe_op_in_unsafe_fn)]
#![warn(rust_2018_idioms)]

pub(crate) use ringattn_sys as sys;

#[rustfmt::skip]
#[path = "generated/docs.rs"]
mod docs;
mod attention;
mod cache;
mod choice;
mod context;
pub mod device;
mod element;
mod error;
mod library;
mod log;
mod mha;
mod record;
mod shard;
mod tensor;
mod generated {
    pub mod enums;
    pub mod records;
}

pub use attention::{merge_attention, BackwardArgs, ForwardArgs, MergeArgs};
pub use cache::{AppendArgs, DecodeArgs, KvCache, Sequence};
pub use context::{AbortHandle, Context, UniqueId};
pub use element::{Bf16, Element, F16};
pub use error::{Error, Result};
pub use generated::enums::*;
pub use generated::records::*;
pub use library::{capabilities, estimate_memory, estimate_time, version};
pub use log::{set_log, LogCallback};
pub use mha::{Activations, MhaBackwardArgs, MhaForwardArgs, MhaGradients, MhaWeights};
pub use shard::{JoinArgs, SplitArgs};
pub use tensor::{Tensor, TensorMut};

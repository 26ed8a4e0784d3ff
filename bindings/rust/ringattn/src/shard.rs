//! Which tokens a rank has.

use std::mem::size_of;
use std::ops::{Bound, Range, RangeBounds};

use crate::error::call;
use crate::tensor::check_dtype;
use crate::{sys, AttentionDesc, DType, Error, Result, Side, Status, Tensor, TensorMut};

/// What [`AttentionDesc::split_sequence`] copies.
#[derive(Debug)]
pub struct SplitArgs<'a> {
    /// Of which sequence.
    pub side: Side,
    /// Heads of this tensor, at least 1.
    pub num_heads: i64,
    /// Elements of a head, at least 1.
    pub dim: i64,
    /// `[batch, seqlen_q or seqlen_kv, num_heads, dim]`
    pub whole: Tensor<'a>,
    /// `[batch, shard length, num_heads, dim]`, of the same dtype; written.
    pub shard: TensorMut<'a>,
}

/// What [`AttentionDesc::join_sequence`] copies; as in [`SplitArgs`].
#[derive(Debug)]
pub struct JoinArgs<'a> {
    /// Of which sequence.
    pub side: Side,
    /// Heads of this tensor, at least 1.
    pub num_heads: i64,
    /// Elements of a head, at least 1.
    pub dim: i64,
    /// `[batch, shard length, num_heads, dim]`
    pub shard: Tensor<'a>,
    /// `[batch, seqlen_q or seqlen_kv, num_heads, dim]`, of the same dtype; its tokens that are in
    /// the shard are written.
    pub whole: TensorMut<'a>,
}

/// Local, without a context. Errors: [`Status::InvalidArgument`].
impl AttentionDesc {
    /// Tokens of one side that rank `rank` of `world_size` owns; may be 0.
    ///
    /// ```
    /// use ringattn::{AttentionDesc, Sharding, Side};
    ///
    /// let desc = AttentionDesc::new().seqlen_q(8).head_dim(64).sharding(Sharding::Zigzag);
    /// assert_eq!(desc.shard_length(2, 0, Side::Query)?, 4);
    /// assert_eq!(desc.shard_positions(2, 0, Side::Query, ..)?, [0, 1, 6, 7]);
    /// # Ok::<(), ringattn::Error>(())
    /// ```
    pub fn shard_length(&self, world_size: i32, rank: i32, side: Side) -> Result<i64> {
        self.with_raw(|desc| {
            // SAFETY: desc is one of C, here and below.
            call(|error| unsafe {
                sys::ra_get_shard_length(desc, world_size, rank, side as i32, error)
            })
        })
    }

    /// Position in the whole sequence of token `index` of that shard.
    pub fn shard_position(
        &self,
        world_size: i32,
        rank: i32,
        side: Side,
        index: i64,
    ) -> Result<i64> {
        self.with_raw(|desc| {
            // SAFETY: as above.
            call(|error| unsafe {
                sys::ra_get_shard_position(desc, world_size, rank, side as i32, index, error)
            })
        })
    }

    /// The same for all tokens of that shard (`..`), or a range of them. The way to get many: each
    /// call reads all document offsets. Errors also: [`Status::OutOfMemory`].
    pub fn shard_positions(
        &self,
        world_size: i32,
        rank: i32,
        side: Side,
        tokens: impl RangeBounds<i64>,
    ) -> Result<Vec<i64>> {
        let length = self.shard_length(world_size, rank, side)?;
        let first = match tokens.start_bound() {
            Bound::Included(&first) => first,
            Bound::Excluded(&before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match tokens.end_bound() {
            Bound::Included(&last) => last.saturating_add(1),
            Bound::Excluded(&end) => end,
            Bound::Unbounded => length,
        };
        let count = end.saturating_sub(first);
        let mut positions = Vec::new();
        // A range that is not within the shard needs no room: the library refuses it.
        if 0 <= first && 0 <= count && end <= length {
            let room = positions.try_reserve_exact(count as usize);
            room.map_err(|error| {
                let message = format!("count is {count}; no memory for so many positions: {error}");
                Error::new(Status::OutOfMemory, message)
            })?;
        }
        self.with_raw(|desc| {
            let to = positions.as_mut_ptr();
            // SAFETY: `to` has room for `count` numbers if the shard has so many tokens.
            call(|error| unsafe {
                let side = side as i32;
                sys::ra_get_shard_positions(desc, world_size, rank, side, first, count, to, error)
            })
        })?;
        // SAFETY: the library has written `count` numbers.
        unsafe { positions.set_len(count as usize) };
        Ok(positions)
    }

    /// Which weights of one row dropout keeps: entry n is for the n-th of `keys`, whether the query
    /// sees it or not. All true without dropout. `entry` is of the batch, `head` of Q; `query` and
    /// the keys are positions of the whole sequence. For tests, and for those who compute a row by
    /// themselves. Errors also: [`Status::OutOfMemory`].
    ///
    /// ```
    /// use ringattn::AttentionDesc;
    ///
    /// let desc = AttentionDesc::new().seqlen_q(8).head_dim(4).dropout_probability(0.5);
    /// let (row, end) = (desc.dropout_mask(0, 0, 3, 0..8)?, desc.dropout_mask(0, 0, 3, 5..8)?);
    /// assert_eq!(row[5..], end[..]);
    /// # Ok::<(), ringattn::Error>(())
    /// ```
    pub fn dropout_mask(
        &self,
        entry: i64,
        head: i64,
        query: i64,
        keys: Range<i64>,
    ) -> Result<Vec<bool>> {
        let (first, count) = (keys.start, keys.end.saturating_sub(keys.start));
        let mut mask: Vec<bool> = Vec::new();
        // What is not within the sequence needs no room: the library refuses it.
        let seqlen_kv = if self.seqlen_kv < 0 {
            self.seqlen_q
        } else {
            self.seqlen_kv
        };
        if 0 <= first && 0 <= count && keys.end <= seqlen_kv {
            mask.try_reserve_exact(count as usize).map_err(|error| {
                let message = format!("count is {count}; no memory for so many keys: {error}");
                Error::new(Status::OutOfMemory, message)
            })?;
        }
        self.with_raw(|desc| {
            let to = mask.as_mut_ptr().cast();
            // SAFETY: `to` has room for `count` bytes if the sequence has so many keys.
            call(|error| unsafe {
                sys::ra_get_dropout_mask(desc, entry, head, query, first, count, to, error)
            })
        })?;
        // SAFETY: the library has written `count` bytes, each 0 or 1.
        unsafe { mask.set_len(count as usize) };
        Ok(mask)
    }

    /// Copies the tokens that `rank` owns out of `whole` into `shard`.
    ///
    /// For lse `[batch, heads, n]` say `dim: 1` and the strides `heads * n, 1, n`, where n is the
    /// length of the whole sequence for the strides of `whole`, and that of the shard for those of
    /// `shard`.
    pub fn split_sequence(&self, world_size: i32, rank: i32, args: SplitArgs<'_>) -> Result<()> {
        let SplitArgs {
            side,
            num_heads,
            dim,
            whole,
            shard,
        } = args;
        check_dtype("shard", shard.dtype, "whole", whole.dtype)?;
        let args = sequence_args(side, whole.dtype, num_heads, dim, whole.raw, shard.raw);
        self.with_raw(|desc| {
            // SAFETY: both tensors are slices of one dtype, whose sizes the library checks, and the
            // one that is written is borrowed by nobody else.
            call(|e| unsafe { sys::ra_split_sequence(desc, world_size, rank, &args, e) })
        })?;
        Ok(())
    }

    /// The reverse: copies `shard` to its places in `whole` and leaves the other tokens as they are.
    pub fn join_sequence(&self, world_size: i32, rank: i32, args: JoinArgs<'_>) -> Result<()> {
        let JoinArgs {
            side,
            num_heads,
            dim,
            shard,
            whole,
        } = args;
        check_dtype("shard", shard.dtype, "whole", whole.dtype)?;
        let args = sequence_args(side, whole.dtype, num_heads, dim, whole.raw, shard.raw);
        self.with_raw(|desc| {
            // SAFETY: as in `split_sequence`.
            call(|e| unsafe { sys::ra_join_sequence(desc, world_size, rank, &args, e) })
        })?;
        Ok(())
    }
}

fn sequence_args(
    side: Side,
    dtype: DType,
    num_heads: i64,
    dim: i64,
    whole: sys::ra_tensor,
    shard: sys::ra_tensor,
) -> sys::ra_sequence_args {
    sys::ra_sequence_args {
        struct_size: size_of::<sys::ra_sequence_args>(),
        side: side as i32,
        dtype: dtype as i32,
        num_heads,
        dim,
        whole,
        shard,
    }
}

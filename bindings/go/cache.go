package ringattn

// #include <ringattn/ringattn.h>
import "C"

import (
	"context"
	"runtime"
	"sync"
	"unsafe"
)

// KVCache has keys and values of many sequences that grow token by token, in pages that are spread over the ranks of a context, for
// [Context.Decode].
//
// Page i of a sequence has its tokens i * PageTokens and the PageTokens - 1 behind, and lies on rank (b + i) mod WorldSize, where b
// differs from sequence to sequence. Which page is where is known on every rank, without a word between them: all ranks make the same
// calls with a cache, in the same order. So they get the same sequences, and the same refusal, as where there is no page left on some
// rank, or a sequence is not known; what is refused has changed nothing. Ranks that have made other calls get [ErrMismatch] from the
// next Decode. Only that sends anything; the other calls are local and do not block.
//
// A cache outlives its context: [KVCache.Move] takes what the remaining ranks have to another one. Calls of several goroutines are made
// one after the other. After [KVCache.Close] all say [ErrInvalidState].
type KVCache struct {
	_      noCopy
	handle *cacheHandle
}

// cacheHandle is what outlives the KVCache that leads to it. Whoever uses raw has mu; one who has a context too entered that before.
type cacheHandle struct {
	mu   sync.Mutex
	raw  *C.ra_kv_cache // nil when it is closed
	desc KVCacheDesc
}

// NewKVCache makes an empty cache for the ranks of c, with memory for all pages of this rank: NumPages * PageTokens * NumHeadsKV *
// (HeadDim + HeadDimV) elements, and beside it some 4 bytes for each page of each rank. Local. Whoever has a cache closes it; what
// nobody closes is freed some time after it has become unreachable.
//
// Errors: [ErrInvalidArgument], [ErrNotSupported] (the CPU backend has caches), [ErrOutOfMemory].
func (c *Context) NewKVCache(desc KVCacheDesc) (*KVCache, error) {
	h := &cacheHandle{desc: desc}
	err := c.local(func(raw *C.ra_context, f *frame) {
		var rawDesc C.ra_kv_cache_desc
		desc.toC(&f.keeper, &rawDesc)
		h.raw = C.ra_create_kv_cache(raw, &rawDesc, &f.err)
	})
	if err != nil {
		return nil, err
	}
	x := &KVCache{handle: h}
	runtime.AddCleanup(x, (*cacheHandle).close, h)
	return x, nil
}

// Close frees the cache and its memory; closing again does nothing. A call that is in progress is waited for: [Context.Abort] ends one
// that waits for other ranks. Always nil.
func (x *KVCache) Close() error {
	if x != nil && x.handle != nil {
		x.handle.close()
	}
	return nil
}

func (h *cacheHandle) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	C.ra_destroy_kv_cache(h.raw)
	h.raw = nil
}

// use runs a call with the cache, when no other one does.
func (x *KVCache) use(call func(*C.ra_kv_cache, *frame)) error {
	if x == nil || x.handle == nil {
		return &Error{Status: StatusInvalidState, Rank: -1, Message: "the cache was not made by NewKVCache"}
	}
	h := x.handle
	h.mu.Lock()
	defer runtime.KeepAlive(x) // until here no cleanup closes it
	defer h.mu.Unlock()
	if h.raw == nil {
		return &Error{Status: StatusInvalidState, Rank: -1, Message: "the cache is closed"}
	}
	return run(func(f *frame) { call(h.raw, f) })
}

// useWith is the same with a context.
func (x *KVCache) useWith(c *Context, call func(*C.ra_kv_cache, *handle, *frame)) error {
	h, err := c.enter()
	if err != nil {
		return err
	}
	defer c.leave(h)
	return x.use(func(raw *C.ra_kv_cache, f *frame) {
		f.onDevice = h.onDevice
		call(raw, h, f)
	})
}

// ---------------------------------------------------------------- sequences

// CreateSequence makes a new sequence without tokens, which takes no page. Its number is >= 0, never given again, and the same on every
// rank. Errors: [ErrOutOfMemory].
func (x *KVCache) CreateSequence() (int64, error) {
	return x.number(func(raw *C.ra_kv_cache, f *frame) C.int64_t { return C.ra_create_sequence(raw, &f.err) })
}

// ForkSequence makes a new sequence that begins with all tokens of sequence: both share the pages, which stay as long as anybody has
// them. Whichever first appends to a page that they share, and that is not full, gets one of its own for it, on the same rank. Errors:
// [ErrInvalidArgument] (sequence is not known, or was freed), [ErrOutOfMemory].
func (x *KVCache) ForkSequence(sequence int64) (int64, error) {
	return x.number(func(raw *C.ra_kv_cache, f *frame) C.int64_t {
		return C.ra_fork_sequence(raw, C.int64_t(sequence), &f.err)
	})
}

// TruncateSequence leaves the first length tokens, 0 <= length <= those it has, and gives back pages of the others. Errors:
// [ErrInvalidArgument].
func (x *KVCache) TruncateSequence(sequence, length int64) error {
	return x.use(func(raw *C.ra_kv_cache, f *frame) {
		C.ra_truncate_sequence(raw, C.int64_t(sequence), C.int64_t(length), &f.err)
	})
}

// FreeSequence gives back the pages of a sequence, which is no more. Errors: [ErrInvalidArgument] (also if that was done before).
func (x *KVCache) FreeSequence(sequence int64) error {
	return x.use(func(raw *C.ra_kv_cache, f *frame) { C.ra_free_sequence(raw, C.int64_t(sequence), &f.err) })
}

// SequenceLength is how many tokens a sequence has, lost ones included. Errors: [ErrInvalidArgument].
func (x *KVCache) SequenceLength(sequence int64) (int64, error) {
	return x.number(func(raw *C.ra_kv_cache, f *frame) C.int64_t {
		return C.ra_get_sequence_length(raw, C.int64_t(sequence), &f.err)
	})
}

// LostTokens is the first token of sequence from position from on that is lost, 0 <= from <= its length; its length, if there is none.
// Tokens are lost up to the end of the page, or of the sequence, at least. Errors: [ErrInvalidArgument].
func (x *KVCache) LostTokens(sequence, from int64) (int64, error) {
	return x.number(func(raw *C.ra_kv_cache, f *frame) C.int64_t {
		return C.ra_get_lost_tokens(raw, C.int64_t(sequence), C.int64_t(from), &f.err)
	})
}

// number is what a call gives, 0 if it failed.
func (x *KVCache) number(call func(*C.ra_kv_cache, *frame) C.int64_t) (int64, error) {
	var n C.int64_t
	err := x.use(func(raw *C.ra_kv_cache, f *frame) { n = call(raw, f) })
	return int64(max(n, 0)), err
}

// Statistics is what the cache holds now.
func (x *KVCache) Statistics() (KVCacheStatistics, error) {
	var s KVCacheStatistics
	err := x.use(func(raw *C.ra_kv_cache, f *frame) {
		var statistics C.ra_kv_cache_statistics
		C.ra_init_kv_cache_statistics(&statistics, C.sizeof_ra_kv_cache_statistics)
		C.ra_get_kv_cache_statistics(raw, &statistics, &f.err)
		s.fromC(&statistics)
	})
	return s, err
}

// ---------------------------------------------------------------- with a context

// Move makes the cache that of another context, with the ranks that are left: rank r of c is the one that was rank formerRanks[r] of the
// context before, and brings its pages. Pages of ranks that are not among them are lost; the sequences keep their lengths, and once
// [Context.Append] was given the lost tokens again ([KVCache.LostTokens]), or they are cut off or freed, go on as before.
//
// formerRanks has as many entries as c has ranks, each another one, the same on every rank. The former context may be broken, or closed.
// Errors: [ErrInvalidArgument], [ErrNotSupported] (the CPU backend has caches), [ErrOutOfMemory]; the cache is then as it was.
func (x *KVCache) Move(c *Context, formerRanks []int32) error {
	info, err := c.Info()
	if err != nil {
		return err
	}
	return x.useWith(c, func(raw *C.ra_kv_cache, h *handle, f *frame) {
		if len(formerRanks) != int(info.WorldSize) {
			f.refuse("former_ranks has %d entries; must have world_size, %d", len(formerRanks), info.WorldSize)
			return
		}
		C.ra_move_kv_cache(raw, h.raw, (*C.int32_t)(unsafe.SliceData(formerRanks)), &f.err)
	})
}

// Append gives tokens to sequences: one to each, as in decoding, or many, as of a prompt. A sequence takes a page for each PageTokens
// tokens begun. c: the cache's own. Local.
//
// Errors: [ErrInvalidArgument]; [ErrOutOfMemory] where a rank has not enough free pages for all of them: the message says which rank,
// how many it has and how many are needed, is the same on all ranks, and nothing was appended to any sequence; [ErrInvalidState] where
// the last page is lost, or another goroutine makes a collective call on c. The context stays usable after each.
func (c *Context) Append(cache *KVCache, args AppendArgs) error {
	return cache.useWith(c, func(raw *C.ra_kv_cache, h *handle, f *frame) {
		if args.toC(&f.keeper, &f.append, &cache.handle.desc); f.refusal == nil {
			C.ra_append(h.raw, raw, &f.append, &f.err)
		}
		f.append = C.ra_append_args{}
	})
}

// Decode attends the last SeqlenQ tokens of each of desc.Batch sequences to all tokens of theirs: a new token or several, as where
// guesses are checked, or a chunk of a prompt. Their keys and values were appended before.
//
// Collective: every rank calls it with an equal desc, the same sequences and the same q, and gets the same out, to the last bit. Of
// desc, SeqlenKV is -1: keys are those of the cache. A query sees keys by mask, windows and their alignment, which is
// [MaskAlignmentBottomRight], as in [Context.Forward] with the sequence's length for SeqlenKV; SoftmaxScale, Softcap, ALiBiSlopes and
// sinks are as there. NumHeadsKV, HeadDim, HeadDimV and DType are the cache's. Documents, KVLengths, key_bias, dropout, mask slices,
// branches, NumChunks but with [ScheduleRing], and shardings other than [ShardingContiguous], the default, are not part of it.
//
// With [SchedulePassQ] each rank attends all queries to the keys that it has, and partial results are merged: what is sent does not
// depend on how much the cache holds. With [ScheduleRing] each rank attends a part of the queries to all keys, which go around.
// [ScheduleAuto] takes the first where queries are fewer bytes than keys: t / n < 2 NumHeadsKV / NumHeadsQ with t queries and n keys,
// those of t included, over all sequences; and where there is one rank. [CallStatistics].Schedule says which it was.
//
// Blocking, cancellation and errors as Forward; [ErrInvalidArgument] also where a sequence has fewer than SeqlenQ tokens, is not known,
// or the cache is another context's or of another dtype or shape; [ErrInvalidState] also where a sequence has lost tokens.
func (c *Context) Decode(ctx context.Context, cache *KVCache, desc AttentionDesc, args DecodeArgs) error {
	return c.collective(ctx, func(h *handle) error {
		return cache.use(func(raw *C.ra_kv_cache, f *frame) {
			f.onDevice = h.onDevice
			desc.toC(&f.keeper, &f.desc)
			if args.toC(&f.keeper, &f.decode, &desc); f.refusal == nil {
				C.ra_decode(h.raw, raw, &f.desc, &f.decode, &f.err)
			}
			f.decode = C.ra_decode_args{}
		})
	})
}

package ringattn_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ringattn.dev/go/ringattn"
)

// KV caches: what is decoded from one is what Forward gives over the same tokens, whatever its sequences went through; what is refused
// has changed nothing. That each shape and schedule is right is the library's own tests' matter.

const pageTokens = 16

func describeCache() ringattn.KVCacheDesc {
	d := ringattn.NewKVCacheDesc()
	d.PageTokens, d.NumPages, d.NumHeadsKV, d.HeadDim, d.HeadDimV = pageTokens, 8, 2, 8, 6
	return d
}

func describeDecoding(batch, seqlen int64) ringattn.AttentionDesc {
	d := describe(seqlen)
	d.Batch, d.NumHeadsQ, d.NumHeadsKV, d.HeadDim, d.HeadDimV = batch, 4, 2, 8, 6
	return d
}

// ofTokens has what tokens, which are numbers, have of the tensor of a name.
func ofTokens(name string, tokens []int64) *array {
	s := shapeOf(describeDecoding(1, 1), name)
	width := s.heads * s.dim
	a, one := newArray(s.dtype, int64(len(tokens))*width), newArray(s.dtype, width)
	for n, token := range tokens {
		one.fill(uint64(token), uint64(strings.Index("qkv", name)))
		for i := range width {
			a.set(int64(n)*width+i, one.get(i))
		}
	}
	return a
}

// served is one rank's context and cache, and which tokens each of its sequences has.
type served struct {
	t      *testing.T
	c      *ringattn.Context
	cache  *ringattn.KVCache
	tokens map[int64][]int64
	next   int64 // token that is new
}

func serve(t *testing.T, c *ringattn.Context) *served {
	t.Helper()
	cache, err := c.NewKVCache(describeCache())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cache.Close() })
	return &served{t, c, cache, map[int64][]int64{}, 1}
}

func (s *served) create() int64 {
	sequence, err := s.cache.CreateSequence()
	return s.add(sequence, nil, err)
}

func (s *served) fork(of int64) int64 {
	sequence, err := s.cache.ForkSequence(of)
	return s.add(sequence, slices.Clone(s.tokens[of]), err)
}

func (s *served) add(sequence int64, tokens []int64, err error) int64 {
	if _, isKnown := s.tokens[sequence]; isKnown || err != nil {
		s.t.Errorf("a new sequence is %d: %v", sequence, err)
	}
	s.tokens[sequence] = tokens
	return sequence
}

func (s *served) truncate(sequence, length int64) {
	s.must(s.cache.TruncateSequence(sequence, length))
	s.tokens[sequence] = s.tokens[sequence][:length]
}

func (s *served) free(sequence int64) {
	s.must(s.cache.FreeSequence(sequence))
	delete(s.tokens, sequence)
}

func (s *served) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Error(err)
	}
}

func (s *served) statistics() ringattn.KVCacheStatistics {
	statistics, err := s.cache.Statistics()
	s.must(err)
	return statistics
}

// append gives new tokens to each sequence, of different numbers.
func (s *served) append(sequences, lengths []int64) {
	s.t.Helper()
	most := slices.Max(lengths)
	all := make([]int64, most*int64(len(sequences)))
	for i := range all {
		all[i] = s.next
		s.next++
	}
	s.must(s.c.Append(s.cache, ringattn.AppendArgs{NumTokens: most, Sequences: sequences, Lengths: lengths,
		K: ofTokens("k", all).packed(), V: ofTokens("v", all).packed()}))
	for n, sequence := range sequences {
		first := int64(n) * most
		s.tokens[sequence] = append(s.tokens[sequence], all[first:first+lengths[n]]...)
		if length, err := s.cache.SequenceLength(sequence); err != nil || length != int64(len(s.tokens[sequence])) {
			s.t.Errorf("sequence %d has %d tokens, not %d: %v", sequence, length, len(s.tokens[sequence]), err)
		}
	}
}

func lastOf(tokens []int64, count int64) []int64 { return tokens[int64(len(tokens))-count:] }

// decode gives out and lse of the last queries of each sequence.
func (s *served) decode(desc ringattn.AttentionDesc, sequences ...int64) (out, lse *array, err error) {
	var queries []int64
	for _, sequence := range sequences {
		queries = append(queries, lastOf(s.tokens[sequence], desc.SeqlenQ)...)
	}
	out = newArray(ringattn.DTypeFloat32, int64(len(queries))*desc.NumHeadsQ*desc.HeadDimV)
	lse = newArray(ringattn.DTypeFloat32, int64(len(queries))*desc.NumHeadsQ)
	err = s.c.Decode(background, s.cache, desc, ringattn.DecodeArgs{Sequences: sequences, Q: ofTokens("q", queries).packed(),
		Out: out.packed(), LSE: lse.packed(), Sinks: sinksOf(desc)})
	return out, lse, err
}

func sinksOf(desc ringattn.AttentionDesc) ringattn.Tensor {
	sinks := newArray(ringattn.DTypeFloat32, desc.NumHeadsQ*desc.NumSinks)
	sinks.fill(0, 0)
	return sinks.packed()
}

// check decodes, compares with what one rank without a cache has, and gives the results' hash.
func (s *served) check(desc ringattn.AttentionDesc, sequences ...int64) string {
	s.t.Helper()
	out, lse, err := s.decode(desc, sequences...)
	if err != nil {
		s.t.Error(err)
		return ""
	}
	alone, err := ringattn.NewContext(ringattn.NewContextConfig())
	if err != nil {
		s.t.Error(err)
		return ""
	}
	defer alone.Close()
	wantedOut, wantedLSE := newArray(out.dtype, out.count), newArray(lse.dtype, lse.count)
	rows := int(desc.SeqlenQ * desc.NumHeadsQ)
	for n, sequence := range sequences {
		tokens, one := s.tokens[sequence], desc
		one.Batch, one.SeqlenKV, one.Schedule = 1, int64(len(tokens)), ringattn.ScheduleAuto
		s.must(alone.Forward(background, one, ringattn.ForwardArgs{Q: ofTokens("q", lastOf(tokens, desc.SeqlenQ)).packed(),
			K: ofTokens("k", tokens).packed(), V: ofTokens("v", tokens).packed(), Sinks: sinksOf(desc),
			Out: ringattn.Packed(slice[float32](wantedOut)[n*rows*int(desc.HeadDimV):]),
			LSE: ringattn.Packed(slice[float32](wantedLSE)[n*rows:])}))
	}
	mustBeNear(s.t, "out", out, wantedOut.get)
	mustBeNear(s.t, "lse", lse, wantedLSE.get)
	return out.hash() + lse.hash()
}

// Prompts of different lengths, then one token after the other, and several queries at once.
func TestCacheDecodesWhatForwardGives(t *testing.T) {
	for _, worldSize := range []int32{1, 3} {
		group, hashes := newGroup(t, worldSize), make([][]string, worldSize)
		err := onEveryRank(worldSize, func(rank int32) error {
			s := serve(t, group[rank])
			a, b, c := s.create(), s.create(), s.create()
			all := []int64{a, b, c}
			s.append(all, []int64{2*pageTokens + 5, 0, pageTokens})
			for step := range int64(4) {
				s.append(all, []int64{1, 1, 1})
				desc := describeDecoding(3, 1)
				desc.NumSinks, desc.Softcap = step%2, float32(step)
				hashes[rank] = append(hashes[rank], s.check(desc, c, a, b))
			}
			desc := describeDecoding(3, 4)
			desc.WindowLeft = 9
			for _, schedule := range []ringattn.Schedule{ringattn.SchedulePassQ, ringattn.ScheduleRing, ringattn.ScheduleAuto} {
				desc.Schedule = schedule
				hashes[rank] = append(hashes[rank], s.check(desc, b, a, b))
				ran, err := group[rank].Statistics()
				if err != nil {
					return err
				}
				if ran.Schedule == ringattn.ScheduleAuto || worldSize > 1 && schedule != ringattn.ScheduleAuto && ran.Schedule != schedule {
					t.Errorf("%v ran with %v", schedule, ran.Schedule)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		for rank := range hashes {
			if !slices.Equal(hashes[rank], hashes[0]) {
				t.Errorf("rank %d of %d has other bits than rank 0", rank, worldSize)
			}
		}
	}
}

func TestCacheSequencesForkAndAreCutOffAndFreed(t *testing.T) {
	group := newGroup(t, 2)
	onEveryRank(2, func(rank int32) error {
		s := serve(t, group[rank])
		a := s.create()
		s.append([]int64{a}, []int64{pageTokens + 3})
		used := s.statistics().UsedPages
		b := s.fork(a)
		if s.statistics().UsedPages != used {
			t.Error("a fork takes pages")
		}
		s.append([]int64{b, a}, []int64{2, pageTokens}) // each its own
		s.check(describeDecoding(2, 2), a, b)
		c := s.fork(b)
		s.truncate(b, 5)
		s.append([]int64{b}, []int64{1})
		s.check(describeDecoding(3, 3), a, b, c)
		s.free(a)
		s.check(describeDecoding(2, 1), c, b)
		got := s.statistics()
		if got.NumSequences != 2 || got.NumTokens != 6+pageTokens+3+2 || got.Memory < 8*pageTokens*2*(8+6)*4 {
			t.Errorf("%+v", got)
		}
		s.free(b)
		s.free(c)
		if got = s.statistics(); got.UsedPages != 0 || got.FreePages != 8 || got.LeastFreePages != 8 {
			t.Errorf("%+v", got)
		}
		return nil
	})
}

func TestRefusalsOfCaches(t *testing.T) {
	group := newGroup(t, 2)
	others := []*ringattn.Context{newGroup(t, 1)[0], newGroup(t, 1)[0]}
	onEveryRank(2, func(rank int32) error {
		s, c, other := serve(t, group[rank]), group[rank], others[rank]
		a, b, freed := s.create(), s.create(), s.create()
		s.append([]int64{a, b}, []int64{pageTokens + 2, 3})
		s.free(freed)
		before, expected := s.statistics(), s.check(describeDecoding(2, 1), a, b)
		invalid := func(err error, words string) {
			t.Helper()
			mustBe(t, err, ringattn.ErrInvalidArgument, strings.Split(words, "|")...)
		}
		failing := func(_ int64, err error) error { return err }

		invalid(s.cache.FreeSequence(freed), "was freed")
		invalid(s.cache.FreeSequence(100), "100")
		invalid(failing(s.cache.ForkSequence(-1)), "-1")
		invalid(failing(s.cache.ForkSequence(freed)), "sequence is 2|was freed")
		invalid(s.cache.TruncateSequence(b, 4), "length is 4|3")
		invalid(s.cache.TruncateSequence(b, -1), "-1")
		invalid(failing(s.cache.SequenceLength(freed)), "freed")
		invalid(failing(s.cache.LostTokens(b, 4)), "from is 4")
		if lost, err := s.cache.LostTokens(b, 0); lost != 3 || err != nil {
			t.Errorf("%d is lost: %v", lost, err)
		}

		many := make([]int64, 14*pageTokens)
		k, v, q := ofTokens("k", many).packed(), ofTokens("v", many).packed(), ofTokens("q", many).packed()
		half := ringattn.Packed(make([]ringattn.BFloat16, 1000))
		type A = *ringattn.AppendArgs
		appended := func(change func(A)) error {
			args := ringattn.AppendArgs{NumTokens: 14 * pageTokens, Sequences: []int64{a}, K: k, V: v}
			change(&args)
			return c.Append(s.cache, args)
		}
		mustBe(t, appended(func(A) {}), ringattn.ErrOutOfMemory, "rank 1 has 6 free pages", "7")
		invalid(appended(func(args A) { args.NumTokens, args.Sequences = 1, []int64{a, a} }), "sequences[1]")
		invalid(appended(func(args A) { args.NumTokens, args.Sequences = 1, []int64{b, freed} }), "sequences[1] is 2|freed")
		invalid(appended(func(args A) { args.Sequences = nil }), "num_sequences is 0")
		invalid(appended(func(args A) { args.Sequences, args.Lengths = nil, []int64{1} }), "sequences is NULL")
		invalid(appended(func(args A) { args.Lengths = []int64{1, 1} }), "lengths has 2 entries|num_sequences, 1")
		invalid(appended(func(args A) { args.Lengths = []int64{} }), "lengths has 0 entries")
		invalid(appended(func(args A) { args.Positions = []int64{0, 0} }), "positions has 2 entries|num_sequences, 1")
		invalid(appended(func(args A) { args.Lengths = []int64{14*pageTokens + 1} }), "lengths[0] is 225|224")
		invalid(appended(func(args A) { args.Positions = []int64{0} }), "positions[0]")
		invalid(appended(func(args A) { args.NumTokens, args.V = 2, ringattn.Packed(make([]float32, 23)) }), "v.size|92|96")
		invalid(appended(func(args A) { args.K = half }), "k is of BFLOAT16; must be of FLOAT32")
		invalid(appended(func(args A) { args.NumTokens = ringattn.NewAppendArgs().NumTokens }), "num_tokens is -1")
		invalid(appended(func(args A) { args.V = ringattn.Device(ringattn.DTypeFloat32, 4096, 0, ringattn.Strides{}) }), "v is device memory")

		type (
			D = *ringattn.AttentionDesc
			X = *ringattn.DecodeArgs
		)
		decoded := func(change func(D, X)) error {
			desc, out := describeDecoding(2, 1), newArray(ringattn.DTypeFloat32, 2*4*4*6)
			args := ringattn.DecodeArgs{Sequences: []int64{a, b}, Q: q, Out: out.packed()}
			change(&desc, &args)
			err := c.Decode(background, s.cache, desc, args)
			if slices.ContainsFunc(slice[float32](out), func(x float32) bool { return x != 0 }) {
				t.Error("out is written")
			}
			return err
		}
		invalid(decoded(func(d D, x X) { x.Sequences = []int64{a} }), "num_sequences is 1|batch = 2")
		invalid(decoded(func(d D, x X) { x.Sequences = nil }), "num_sequences is 0|batch = 2")
		invalid(decoded(func(d D, x X) { x.Sequences[1] = freed }), "sequences[1] is 2|freed")
		invalid(decoded(func(d D, x X) { d.SeqlenQ = 4 }), "sequences[1] is 1|3 tokens|seqlen_q = 4")
		invalid(decoded(func(d D, x X) { d.HeadDim = 16 }), "head_dim is 16|8")
		invalid(decoded(func(d D, x X) { d.SeqlenKV = 8 }), "seqlen_kv is 8")
		mustBe(t, decoded(func(d D, x X) { d.Schedule = ringattn.ScheduleAllGather }), ringattn.ErrNotSupported, "schedule")
		invalid(decoded(func(d D, x X) { x.Q = half }), "q is of BFLOAT16; must be of FLOAT32")
		invalid(decoded(func(d D, x X) { x.Q = ringattn.Packed(make([]float32, 63)) }), "q.size|252|256")
		invalid(decoded(func(d D, x X) { x.LSE = ringattn.Packed(make([]float32, 7)) }), "lse_size|28|32")
		invalid(decoded(func(d D, x X) { x.Sinks = ringattn.Packed(make([]float32, 4)) }), "sinks")

		invalid(other.Append(s.cache, ringattn.AppendArgs{NumTokens: 1, Sequences: []int64{a}, K: k, V: v}), "cache is of another context")
		out := ringattn.Packed(make([]float32, 48))
		args := ringattn.DecodeArgs{Sequences: []int64{a, b}, Q: q, Out: out}
		invalid(other.Decode(background, s.cache, describeDecoding(2, 1), args), "cache is of another context")
		if after := s.statistics(); after != before {
			t.Errorf("%+v has become %+v", before, after)
		}
		if s.check(describeDecoding(2, 1), a, b) != expected {
			t.Error("decoding gives something else")
		}
		return nil
	})

	refused := func(words string, change func(*ringattn.KVCacheDesc)) {
		t.Helper()
		desc := describeCache()
		change(&desc)
		_, err := others[0].NewKVCache(desc)
		mustBe(t, err, ringattn.ErrInvalidArgument, strings.Split(words, "|")...)
	}
	refused("num_pages is 0|1", func(d *ringattn.KVCacheDesc) { d.NumPages = 0 })
	refused("page_tokens is 15|16", func(d *ringattn.KVCacheDesc) { d.PageTokens = 15 })
	refused("head_dim is 257|256", func(d *ringattn.KVCacheDesc) { d.HeadDim = 257 })
	refused("dtype", func(d *ringattn.KVCacheDesc) { d.DType = ringattn.DTypeSame })
}

func TestCachesWithOtherCalls(t *testing.T) {
	group := newGroup(t, 2)
	onEveryRank(2, func(rank int32) error {
		s := serve(t, group[rank])
		a := s.create()
		s.append([]int64{a}, []int64{3})
		if rank == 1 {
			s.create()
		}
		_, _, err := s.decode(describeDecoding(1, 1), a)
		mustBe(t, err, ringattn.ErrMismatch)
		return nil
	})
}

// A rank leaves while the others decode: these go on without it, once they have its tokens again.
func TestCacheInFewerRanks(t *testing.T) {
	group, left := newGroup(t, 3), make([]*served, 3)
	var haveDecoded sync.WaitGroup
	haveDecoded.Add(3)
	const a, b = 0, 1
	onEveryRank(3, func(rank int32) error {
		s := serve(t, group[rank])
		left[rank] = s
		s.create()
		s.create()
		s.append([]int64{a, b}, []int64{5*pageTokens + 2, 7})
		s.check(describeDecoding(2, 1), a, b)
		haveDecoded.Done()
		haveDecoded.Wait()
		if rank == 1 {
			return group[rank].Close()
		}
		_, _, err := s.decode(describeDecoding(2, 1), a, b)
		if !errors.Is(err, ringattn.ErrInvalidState) || !strings.Contains(err.Error(), "PEER_LOST") { // of a call that began later
			mustBe(t, err, ringattn.ErrPeerLost)
		}
		if failure := err.(*ringattn.Error); failure.Rank != 1 {
			t.Errorf("%+v", failure)
		}
		return group[rank].Close()
	})

	smaller, hashes := newGroup(t, 2), make([]string, 2)
	onEveryRank(2, func(rank int32) error {
		s, c := left[rank*2], smaller[rank]
		s.c = c
		before := s.statistics()
		invalid := func(words string, former ...int32) {
			t.Helper()
			mustBe(t, s.cache.Move(c, former), ringattn.ErrInvalidArgument, strings.Split(words, "|")...)
		}
		invalid("former_ranks has 3 entries|world_size, 2", 0, 1, 2)
		invalid("former_ranks has 0 entries")
		invalid("former_ranks[1] is 3|2", 0, 3)
		invalid("former_ranks[1] is 2", 2, 2)
		invalid("must be", 2, 0)
		mustBe(t, c.Append(s.cache, ringattn.AppendArgs{Sequences: []int64{a}}), ringattn.ErrInvalidArgument, "another context")
		mustBe(t, s.cache.Move(group[0], []int32{0, 1, 2}), ringattn.ErrInvalidState, "closed")
		if after := s.statistics(); after != before {
			t.Errorf("%+v has become %+v", before, after)
		}
		s.must(s.cache.Move(c, []int32{0, 2}))

		_, _, err := s.decode(describeDecoding(2, 1), a, b)
		mustBe(t, err, ringattn.ErrInvalidState, "lost tokens")
		moved, given := s.statistics(), int64(0)
		for _, sequence := range []int64{a, b} {
			tokens := s.tokens[sequence]
			for {
				first, err := s.cache.LostTokens(sequence, 0)
				if err != nil {
					return err
				}
				if first == int64(len(tokens)) {
					break
				}
				again := tokens[first:min(len(tokens), int(first-first%pageTokens+pageTokens))]
				s.must(c.Append(s.cache, ringattn.AppendArgs{NumTokens: int64(len(again)), Sequences: []int64{sequence}, Positions: []int64{first},
					K: ofTokens("k", again).packed(), V: ofTokens("v", again).packed()}))
				given++
			}
		}
		if given == 0 || moved.LostPages != given || moved.NumTokens != before.NumTokens {
			t.Errorf("%d pages are given again to %+v", given, moved)
		}
		hashes[rank] = s.check(describeDecoding(2, 1), a, b)
		s.append([]int64{a, b}, []int64{1, pageTokens})
		hashes[rank] += s.check(describeDecoding(2, 1), b, a)
		return nil
	})
	if hashes[0] != hashes[1] {
		t.Error("ranks have different bits")
	}
}

// It needs no context to be asked, or closed; and after that nothing asks it.
func TestCacheOutlivesItsContext(t *testing.T) {
	s := serve(t, newGroup(t, 1)[0])
	a := s.create()
	s.append([]int64{a}, []int64{pageTokens})
	s.c.Close()
	b := s.fork(a)
	s.truncate(b, 3)
	mustBe(t, s.c.Append(s.cache, ringattn.AppendArgs{}), ringattn.ErrInvalidState, "closed")
	_, err := s.c.NewKVCache(describeCache())
	mustBe(t, err, ringattn.ErrInvalidState, "closed")
	s.c = newGroup(t, 1)[0]
	s.must(s.cache.Move(s.c, []int32{0}))
	s.append([]int64{a, b}, []int64{2, 1})
	s.check(describeDecoding(2, 2), a, b)

	s.must(s.cache.Close())
	s.must(s.cache.Close())
	for _, cache := range []*ringattn.KVCache{s.cache, nil, {}} {
		_, err = cache.CreateSequence()
		mustBe(t, err, ringattn.ErrInvalidState, "cache")
		mustBe(t, s.c.Append(cache, ringattn.AppendArgs{}), ringattn.ErrInvalidState, "cache")
		mustBe(t, s.c.Decode(background, cache, describeDecoding(1, 1), ringattn.DecodeArgs{}), ringattn.ErrInvalidState, "cache")
		mustBe(t, cache.Move(s.c, []int32{0}), ringattn.ErrInvalidState, "cache")
	}
}

func TestCancelDecoding(t *testing.T) {
	ctx, cancel := context.WithCancel(background)
	time.AfterFunc(20*time.Millisecond, cancel)
	s := serve(t, newGroup(t, 2)[0])
	a := s.create()
	s.append([]int64{a}, []int64{1})
	closed := make(chan error, 1)
	inTime(t, "a cancelled call", func() {
		time.AfterFunc(10*time.Millisecond, func() { closed <- s.cache.Close() }) // waits for the call
		err := s.c.Decode(ctx, s.cache, describeDecoding(1, 1), ringattn.DecodeArgs{Sequences: []int64{a}, Q: ofTokens("q", []int64{1}).packed(),
			Out: ringattn.Packed(make([]float32, 24))})
		mustBe(t, err, ringattn.ErrAborted)
		mustBe(t, err, context.Canceled)
		s.must(<-closed)
	})
}

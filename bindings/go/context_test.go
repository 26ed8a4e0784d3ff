package ringattn_test

import (
	"context"
	"errors"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"ringattn.dev/go/ringattn"
)

// ---------------------------------------------------------------- cancellation

// waiting makes a group of which the last rank does not come, runs a forward call of all others with ctx, and gives their errors.
func waiting(t *testing.T, worldSize int32, ctx func(rank int32) context.Context) (group []*ringattn.Context, failures []error) {
	group = newGroup(t, worldSize)
	failures = make([]error, worldSize-1)
	inTime(t, "a cancelled call", func() {
		onEveryRank(worldSize-1, func(rank int32) error {
			p := newProblem(t, describe(64), worldSize, rank)
			failures[rank] = group[rank].Forward(ctx(rank), p.desc, p.forward())
			return nil
		})
	})
	return group, failures
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(background)
	time.AfterFunc(20*time.Millisecond, cancel)
	group, failures := waiting(t, 3, func(int32) context.Context { return ctx })
	for rank, err := range failures {
		mustBe(t, err, ringattn.ErrAborted)
		mustBe(t, err, context.Canceled)
		var failure *ringattn.Error
		if !errors.As(err, &failure) || failure.Rank < 0 || failure.Rank > 1 {
			t.Errorf("rank %d says that rank %v aborted", rank, failure)
		}
	}
	p := newProblem(t, describe(64), 3, 2)
	mustBe(t, group[2].Forward(background, p.desc, p.forward()), ringattn.ErrInvalidState, "ABORTED")
	mustBe(t, group[2].AsyncError(), ringattn.ErrAborted)
}

func TestDeadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(background, 20*time.Millisecond)
	defer cancel()
	_, failures := waiting(t, 2, func(int32) context.Context { return ctx })
	mustBe(t, failures[0], ringattn.ErrAborted)
	mustBe(t, failures[0], context.DeadlineExceeded)
}

// Whoever is not cancelled is told by the library who was.
func TestCancelOfAnotherRank(t *testing.T) {
	ctx, cancel := context.WithCancel(background)
	time.AfterFunc(20*time.Millisecond, cancel)
	_, failures := waiting(t, 3, func(rank int32) context.Context {
		if rank == 1 {
			return ctx
		}
		return background
	})
	mustBe(t, failures[0], ringattn.ErrAborted, "rank 1")
	mustBe(t, failures[1], context.Canceled)
	if errors.Is(failures[0], context.Canceled) {
		t.Error("rank 0 says that it was cancelled")
	}
}

func TestCancelledBefore(t *testing.T) {
	ctx, cancel := context.WithCancel(background)
	cancel()
	_, failures := waiting(t, 2, func(int32) context.Context { return ctx })
	mustBe(t, failures[0], ringattn.ErrAborted)
	mustBe(t, failures[0], context.Canceled)
}

// Whatever else the call has to say is not lost.
func TestCancelIsNotTheOnlyError(t *testing.T) {
	ctx, cancel := context.WithCancel(background)
	cancel()
	group := newGroup(t, 2)
	group[1].Close()
	p := newProblem(t, describe(64), 2, 0)
	mustBe(t, group[0].Forward(background, p.desc, p.forward()), ringattn.ErrPeerLost)
	err := group[0].Forward(ctx, p.desc, p.forward())
	mustBe(t, err, ringattn.ErrPeerLost, "context canceled")
	mustBe(t, err, context.Canceled)
	var failure *ringattn.Error
	if !errors.As(err, &failure) || failure.Rank != 1 {
		t.Errorf("rank is not 1: %v", err)
	}
}

// A call that nobody cancels leaves nothing behind that could abort the next.
func TestCancelAfterwards(t *testing.T) {
	c := newGroup(t, 1)[0]
	p := newProblem(t, describe(64), 1, 0)
	for range 100 {
		ctx, cancel := context.WithCancel(background)
		if err := c.Forward(ctx, p.desc, p.forward()); err != nil {
			t.Fatal(err)
		}
		cancel()
	}
}

// At whatever moment ctx is cancelled, the call succeeds or says so, and the next one agrees.
func TestCancelAtAnyMoment(t *testing.T) {
	for i := range 100 {
		c := newGroup(t, 1)[0]
		p := newProblem(t, describe(128), 1, 0)
		ctx, cancel := context.WithCancel(background)
		go func() {
			for range i * 10 {
				runtime.Gosched()
			}
			cancel()
		}()
		for {
			err := c.Forward(ctx, p.desc, p.forward())
			if err == nil {
				continue
			}
			mustBe(t, err, ringattn.ErrAborted)
			mustBe(t, err, context.Canceled)
			break
		}
		mustBe(t, c.Forward(background, p.desc, p.forward()), ringattn.ErrInvalidState)
	}
}

func TestWithoutCtx(t *testing.T) {
	c := newGroup(t, 1)[0]
	p := newProblem(t, describe(64), 1, 0)
	mustBe(t, c.Forward(nil, p.desc, p.forward()), ringattn.ErrInvalidArgument, "ctx") //nolint:staticcheck
}

// ---------------------------------------------------------------- calls

// Of two that call at once, one waits for the other rank, the other is refused.
func TestOneGoroutineAtATime(t *testing.T) {
	group := newGroup(t, 2)
	failures := make(chan error)
	for range 2 {
		p := newProblem(t, describe(64), 2, 0)
		go func() { failures <- group[0].Forward(background, p.desc, p.forward()) }()
	}
	mustBe(t, <-failures, ringattn.ErrInvalidState, "in use")
	last := newProblem(t, describe(64), 2, 1)
	if err := errors.Join(group[1].Forward(background, last.desc, last.forward()), <-failures); err != nil {
		t.Error(err)
	}
}

func TestAsks(t *testing.T) {
	group := newGroup(t, 2)
	desc := describe(100)
	err := onEveryRank(2, func(rank int32) error {
		p := newProblem(t, desc, 2, rank)
		return group[rank].Forward(background, p.desc, p.forward())
	})
	if err != nil {
		t.Fatal(err)
	}
	config := ringattn.NewContextConfig()
	config.Rank, config.WorldSize, config.NumThreads = 1, 2, 1
	info, err1 := group[1].Info()
	statistics, err2 := group[1].Statistics()
	needs, err3 := group[1].MemoryRequirements(desc)
	estimate, err4 := ringattn.EstimateMemory(config, desc)
	rates := ringattn.NewMachineRates()
	rates.ForwardFlops, rates.BackwardFlops = 1e9, 1e8
	times, err7 := ringattn.EstimateTime(config, desc, rates)
	engine, err5 := group[1].CheckSupport(desc)
	capabilities, err6 := ringattn.GetCapabilities()
	if err := errors.Join(err1, err2, err3, err4, err5, err6, err7, group[1].AsyncError()); err != nil {
		t.Fatal(err)
	}
	if info.Rank != 1 || info.WorldSize != 2 || info.Timeout != time.Minute || info.NumThreads != 1 || info.Backend != ringattn.BackendCPU {
		t.Errorf("info is %+v", info)
	}
	if statistics.Steps != needs.ForwardSteps || statistics.Hops != needs.ForwardHops || statistics.HopBytes != needs.ForwardHopBytes ||
		statistics.TotalSeconds <= 0 || needs.ForwardSteps < 1 {
		t.Errorf("statistics are %+v; were to be %+v", statistics, needs)
	}
	if needs.Context == 0 || estimate.ForwardWorkspace != needs.ForwardWorkspace || needs.ForwardSchedule != ringattn.ScheduleRing {
		t.Errorf("requirements are %+v, estimated as %+v", needs, estimate)
	}
	isNear := func(a, b float64) bool { return math.Abs(a-b) <= 1e-9*b }
	if !isNear(times.ForwardComputeSeconds, needs.ForwardFlops/1e9) || !isNear(times.BackwardComputeSeconds, needs.BackwardFlops/1e8) {
		t.Errorf("times are %+v for %+v", times, needs)
	}
	if !strings.Contains(engine, info.Engine) || !strings.Contains(capabilities.Engines, info.Engine) || info.Engine == "" {
		t.Errorf("the engine is %q, %q, one of %q", engine, info.Engine, capabilities.Engines)
	}
	if capabilities.MaxHeadDim != 256 || capabilities.HardwareThreads < 1 {
		t.Errorf("capabilities are %+v", capabilities)
	}
	if _, err := ringattn.NewUniqueID(ringattn.TransportZeroMQ, ""); (err == nil) != capabilities.HasZeroMQ {
		t.Errorf("HasZeroMQ is %t, and an id %v", capabilities.HasZeroMQ, err)
	}
}

func TestSelfTest(t *testing.T) {
	group := newGroup(t, 2)
	if err := onEveryRank(2, func(rank int32) error { return group[rank].RunSelfTest(background, 5, 1) }); err != nil {
		t.Error(err)
	}
}

// The workspace of the caller is used: too small a one, or one that is not aligned, is refused.
func TestWorkspace(t *testing.T) {
	c := newGroup(t, 1)[0]
	p := newProblem(t, describe(64), 1, 0)
	needs, err := c.MemoryRequirements(p.desc)
	if err != nil {
		t.Fatal(err)
	}
	args := p.forward()
	args.Workspace = ringattn.NewBuffer(needs.ForwardWorkspace)
	if err := c.Forward(background, p.desc, args); err != nil {
		t.Error(err)
	}
	args.Workspace = ringattn.NewBuffer(needs.ForwardWorkspace - 1)
	mustBe(t, c.Forward(background, p.desc, args), ringattn.ErrInvalidArgument, "workspace_size")
	args.Workspace = ringattn.HostBuffer(make([]byte, needs.ForwardWorkspace+64)[1:])
	mustBe(t, c.Forward(background, p.desc, args), ringattn.ErrInvalidArgument, "workspace")
	args.Workspace = ringattn.NewBuffer(0)
	if err := c.Forward(background, p.desc, args); err != nil {
		t.Error(err)
	}
	args.Stream = 1
	mustBe(t, c.Forward(background, p.desc, args), ringattn.ErrInvalidArgument, "stream")
}

// q, k and v interleaved in one slice are the same as apart.
func TestStrides(t *testing.T) {
	c := newGroup(t, 1)[0]
	p := newProblem(t, describe(40), 1, 0)
	if err := c.Forward(background, p.desc, p.forward()); err != nil {
		t.Fatal(err)
	}
	apart := p.of["out"].hash()
	row := p.desc.NumHeadsQ * p.desc.HeadDim
	together := make([]float32, 3*p.of["q"].count)
	for i := range p.of["q"].count {
		for n, name := range []string{"q", "k", "v"} {
			together[(i/row*3+int64(n))*row+i%row] = p.of[name].get(i)
		}
	}
	strides := ringattn.Strides{Batch: 3 * row * p.desc.SeqlenQ, Seq: 3 * row, Head: p.desc.HeadDim}
	args := p.forward()
	args.Q = ringattn.Strided(together, strides)
	args.K = ringattn.Strided(together[row:], strides)
	args.V = ringattn.Strided(together[2*row:], strides)
	clear(slice[float32](p.of["out"]))
	if err := c.Forward(background, p.desc, args); err != nil {
		t.Fatal(err)
	}
	if p.of["out"].hash() != apart {
		t.Error("out differs")
	}
	args.V = ringattn.Strided(together[2*row:len(together)-1], strides)
	mustBe(t, c.Forward(background, p.desc, args), ringattn.ErrInvalidArgument, "v.size")
}

// What Go refuses before C sees it.
func TestRefusals(t *testing.T) {
	c := newGroup(t, 1)[0]
	refused := func(words string, change func(*ringattn.AttentionDesc, *ringattn.ForwardArgs)) {
		t.Helper()
		p := newProblem(t, describe(16), 1, 0)
		args := p.forward()
		change(&p.desc, &args)
		mustBe(t, c.Forward(background, p.desc, args), ringattn.ErrInvalidArgument, strings.Split(words, "|")...)
	}
	half := ringattn.Packed(make([]ringattn.BFloat16, 256))
	refused("q is of BFLOAT16|must be of FLOAT32", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) { a.Q = half })
	refused("out is of BFLOAT16|must be of FLOAT32", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) { a.Out = half })
	refused("out is of FLOAT32|must be of FLOAT16", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) { d.OutDType = ringattn.DTypeFloat16 })
	refused("k is of FLOAT32|must be of BFLOAT16", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) {
		d.DType, d.OutDType = ringattn.DTypeBFloat16, ringattn.DTypeFloat32
		a.Q = half
	})
	refused("lse is of BFLOAT16", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) { a.LSE = half })
	refused("lse has strides", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) {
		a.LSE = ringattn.Strided(make([]float32, 64), ringattn.Strides{Batch: 32, Seq: 1, Head: 16})
	})
	refused("dtype is 7", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) { d.DType = 7 })
	refused("q.data is NULL", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) { a.Q = ringattn.Tensor{} })
	refused("kv_lengths has 2 entries|batch, 1", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) { d.KVLengths = []int64{1, 2} })
	refused("document_offsets_kv has 2 entries|num_documents + 1, 3", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) {
		d.DocumentOffsetsQ, d.DocumentOffsetsKV = []int64{0, 8, 16}, []int64{0, 16}
	})
	refused("kv_lengths has 0 entries|batch, 1", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) { d.KVLengths = []int64{} })
	refused("num_documents is -1", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) { d.DocumentOffsetsQ = []int64{} })
	device := ringattn.Device(ringattn.DTypeFloat32, 4096, 0, ringattn.Strides{})
	refused("q is device memory", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) { a.Q = device })
	refused("lse is device memory", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) { a.LSE = device })
	refused("workspace is device memory", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) {
		a.Workspace = ringattn.DeviceBuffer(4096, 1<<30)
	})
	refused("document_offsets_q is NULL", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) { d.DocumentOffsetsKV = []int64{0, 16} })
	refused("num_documents is 0", func(d *ringattn.AttentionDesc, a *ringattn.ForwardArgs) { d.DocumentOffsetsQ = []int64{0} })

	config := ringattn.NewContextConfig()
	config.Engine = "avx2\x00"
	_, err := ringattn.NewContext(config)
	mustBe(t, err, ringattn.ErrInvalidArgument, "engine has a zero byte at 4")
	config = ringattn.NewContextConfig()
	config.Timeout = -1
	_, err = ringattn.NewContext(config)
	mustBe(t, err, ringattn.ErrInvalidArgument, "timeout_ms", "-1")
	p := newProblem(t, describe(16), 1, 0)
	if err := c.Forward(background, p.desc, p.forward()); err != nil {
		t.Errorf("after refusals: %v", err)
	}
}

// Two ranks share one token: a rank has nothing, and slices are empty.
func TestShardsWithoutTokens(t *testing.T) {
	group := newGroup(t, 2)
	err := onEveryRank(2, func(rank int32) error {
		p := newProblem(t, describe(1), 2, rank)
		if rank == 1 && p.of["q"].count != 0 {
			t.Errorf("rank 1 has %d elements", p.of["q"].count)
		}
		if err := group[rank].Forward(background, p.desc, p.forward()); err != nil {
			return err
		}
		return group[rank].Backward(background, p.desc, p.backward())
	})
	if err != nil {
		t.Error(err)
	}
}

func TestShardPositions(t *testing.T) {
	desc := describe(37)
	desc.Sharding = ringattn.ShardingZigzag
	seen := make([]bool, 37)
	for rank := range int32(3) {
		length, err := desc.ShardLength(3, rank, ringattn.SideQuery)
		if err != nil {
			t.Fatal(err)
		}
		positions := make([]int64, length)
		if err := desc.ShardPositions(3, rank, ringattn.SideQuery, 0, positions); err != nil {
			t.Fatal(err)
		}
		for i, position := range positions {
			if one, err := desc.ShardPosition(3, rank, ringattn.SideQuery, int64(i)); err != nil || one != position || seen[position] {
				t.Errorf("token %d of rank %d is at %d or %d: %v", i, rank, position, one, err)
			}
			seen[position] = true
		}
	}
	if err := desc.ShardPositions(3, 0, ringattn.SideQuery, 0, nil); err != nil {
		t.Error(err)
	}
}

func TestDropoutMask(t *testing.T) {
	desc := describe(1000)
	desc.DropoutProbability = 0.25
	row, end := make([]bool, 1000), make([]bool, 10)
	if err := errors.Join(desc.DropoutMask(0, 1, 7, 0, row), desc.DropoutMask(0, 1, 7, 990, end)); err != nil {
		t.Fatal(err)
	}
	kept := 0
	for i, isKept := range row {
		if isKept {
			kept++
		}
		if i >= 990 && isKept != end[i-990] {
			t.Errorf("key %d depends on where the mask begins", i)
		}
	}
	if kept < 650 || kept > 850 {
		t.Errorf("%d of 1000 are kept; must be about 750", kept)
	}
	if err := desc.DropoutMask(0, 1, 7, 1000, nil); err != nil {
		t.Error(err)
	}
	mustBe(t, desc.DropoutMask(0, 1, 7, 991, end), ringattn.ErrInvalidArgument, "count is 10")
}

func TestListsSayHowManyThereAre(t *testing.T) {
	desc := describe(9)
	desc.MaskSlices = []int64{0, 9, 0, 9, 0, 1, 2}
	_, err := desc.ShardLength(1, 0, ringattn.SideQuery)
	mustBe(t, err, ringattn.ErrInvalidArgument, "mask_slices has 7 entries; must have 5")
	desc.MaskSlices, desc.SegmentLengths, desc.Dilations = []int64{}, []int64{4, 9}, []int64{1}
	_, err = desc.ShardLength(1, 0, ringattn.SideQuery)
	mustBe(t, err, ringattn.ErrInvalidArgument, "dilations has 1 entries; must have num_branches, 2")
	desc.SegmentLengths, desc.Dilations = []int64{}, nil
	if _, err := desc.ShardLength(1, 0, ringattn.SideQuery); err != nil {
		t.Error(err)
	}
}

// The union of attention over the first and the last keys is attention over all.
func TestMergeAttention(t *testing.T) {
	c := newGroup(t, 1)[0]
	desc := describe(16)
	desc.Mask = ringattn.MaskFull
	p := newProblem(t, desc, 1, 0)
	if err := c.Forward(background, desc, p.forward()); err != nil {
		t.Fatal(err)
	}
	half := func(first int64) (out, lse *array) {
		d := desc
		d.SeqlenKV = 8
		args := p.forward()
		out, lse = newArray(ringattn.DTypeFloat32, p.of["out"].count), newArray(ringattn.DTypeFloat32, p.of["lse"].count)
		args.K = ringattn.Packed(slice[float32](p.of["k"])[first*16:])
		args.V = ringattn.Packed(slice[float32](p.of["v"])[first*16:])
		args.Out, args.LSE = out.packed(), lse.packed()
		if err := c.Forward(background, d, args); err != nil {
			t.Fatal(err)
		}
		return out, lse
	}
	outA, lseA := half(0)
	outB, lseB := half(8)
	args := ringattn.NewMergeArgs()
	args.Seqlen, args.NumHeads, args.HeadDimV = 16, 2, 8
	args.OutA, args.OutB, args.Out = outA.packed(), outB.packed(), outA.packed()
	args.LSEA, args.LSEB, args.LSE = lseA.packed(), lseB.packed(), lseA.packed()
	short := args
	short.LSEA, short.LSEB = ringattn.Device(ringattn.DTypeFloat32, 4096, 0, ringattn.Strides{}), ringattn.Packed(make([]float32, 1))
	mustBe(t, ringattn.MergeAttention(short), ringattn.ErrInvalidArgument, "lse_a is device memory")
	short.LSEA = ringattn.Packed([]float32{}) // does not let the short one pass
	mustBe(t, ringattn.MergeAttention(short), ringattn.ErrInvalidArgument, "lse")
	if err := ringattn.MergeAttention(args); err != nil {
		t.Fatal(err)
	}
	for i := range outA.count {
		if math.Abs(float64(outA.get(i)-p.of["out"].get(i))) > 1e-6 {
			t.Fatalf("out[%d] is %v, not %v", i, outA.get(i), p.of["out"].get(i))
		}
	}
}

// ---------------------------------------------------------------- log

// Whatever the function does, C is not unwound, and calls go on.
func TestLog(t *testing.T) {
	defer ringattn.SetLog(ringattn.LogLevelDebug, nil)
	var mutex sync.Mutex
	var messages []string
	for _, end := range []func(){func() {}, func() { panic("in a log function") }, runtime.Goexit, func() { runtime.GC() }} {
		before := len(messages)
		ringattn.SetLog(ringattn.LogLevelDebug, func(level ringattn.LogLevel, message string) {
			mutex.Lock()
			defer mutex.Unlock()
			messages = append(messages, level.String()+" "+message)
			end()
		})
		newGroup(t, 2)
		if len(messages) < before+2 {
			t.Errorf("%d messages", len(messages)-before)
		}
	}
	if !strings.Contains(messages[0], "DEBUG rank ") || !strings.Contains(messages[0], "engine") {
		t.Errorf("the first message is %q", messages[0])
	}
	ringattn.SetLog(ringattn.LogLevelDebug, nil)
	count := len(messages)
	newGroup(t, 1)
	if len(messages) != count {
		t.Error("messages after the function is gone")
	}
}

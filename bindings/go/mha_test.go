package ringattn_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"ringattn.dev/go/ringattn"
)

// Layers of multi-head attention, and sums over ranks. That a layer computes what it should is the library's own tests' matter.

const dModel = 10

func describeLayer() (ringattn.AttentionDesc, ringattn.MHADesc) {
	d := describe(24)
	d.Batch, d.NumHeadsQ, d.NumHeadsKV, d.HeadDim, d.HeadDimV = 2, 4, 2, 8, 6
	d.Sharding = ringattn.ShardingZigzag
	m := ringattn.NewMHADesc()
	m.DModel, m.Rotary = dModel, ringattn.RotaryHalves
	m.HasQKVBias, m.HasOutBias, m.NormalizeHeads = true, true, true
	return d, m
}

var weightNames = [10]string{"w_q", "w_k", "w_v", "w_o", "b_q", "b_k", "b_v", "b_o", "norm_q", "norm_k"}

// newWeights makes lists as long as the weights, in the order of their names; without numbers where the layer has none.
func newWeights(d ringattn.AttentionDesc, m ringattn.MHADesc, dtype ringattn.DType) (lists [10]*array) {
	columns := func(name string) int64 { return shapeOf(d, name).heads * shapeOf(d, name).dim }
	q, k, v, attended := columns("q"), columns("k"), columns("v"), columns("out")
	counts := [10]int64{m.DModel * q, m.DModel * k, m.DModel * v, attended * m.DModel, q, k, v, m.DModel, d.HeadDim, d.HeadDim}
	for i, isThere := range [10]bool{true, true, true, true, m.HasQKVBias, m.HasQKVBias, m.HasQKVBias, m.HasOutBias, m.NormalizeHeads, m.NormalizeHeads} {
		if !isThere {
			counts[i] = 0
		}
		lists[i] = newArray(dtype, counts[i])
	}
	return lists
}

func allPacked(lists [10]*array) (tensors [10]ringattn.Tensor) {
	for i, list := range lists {
		tensors[i] = list.packed()
	}
	return tensors
}

func withWeights(w [10]ringattn.Tensor) ringattn.MHAForwardArgs {
	return ringattn.MHAForwardArgs{WQ: w[0], WK: w[1], WV: w[2], WO: w[3], BQ: w[4], BK: w[5], BV: w[6], BO: w[7], NormQ: w[8], NormK: w[9]}
}

func withGradients(args ringattn.MHABackwardArgs, g [10]ringattn.Tensor) ringattn.MHABackwardArgs {
	args.DWQ, args.DWK, args.DWV, args.DWO = g[0], g[1], g[2], g[3]
	args.DBQ, args.DBK, args.DBV, args.DBO = g[4], g[5], g[6], g[7]
	args.DNormQ, args.DNormK = g[8], g[9]
	return args
}

// layer is a layer and one rank's tensors of it. Tokens have numbers by their positions, and weights are the same on every rank.
type layer struct {
	desc               ringattn.AttentionDesc
	mha                ringattn.MHADesc
	indices            []int64 // of this rank's numbers in a whole [batch, tokens, d_model]
	x, dout, out, dx   *array
	weights, gradients [10]*array
	activations        ringattn.Buffer
}

func newLayer(t testing.TB, c *ringattn.Context, desc ringattn.AttentionDesc, mha ringattn.MHADesc) *layer {
	t.Helper()
	info, err := c.Info()
	if err != nil {
		t.Fatal(err)
	}
	length, err := desc.ShardLength(info.WorldSize, info.Rank, ringattn.SideQuery)
	positions := make([]int64, length)
	if err == nil {
		err = desc.ShardPositions(info.WorldSize, info.Rank, ringattn.SideQuery, 0, positions)
	}
	l := &layer{desc: desc, mha: mha}
	l.weights, l.gradients = newWeights(desc, mha, ringattn.DTypeFloat32), newWeights(desc, mha, ringattn.DTypeFloat32)
	if err == nil {
		l.activations, err = c.NewActivations(desc, mha)
	}
	if err != nil {
		t.Fatal(err)
	}
	for entry := range desc.Batch {
		for _, position := range positions {
			for i := range int64(dModel) {
				l.indices = append(l.indices, (entry*desc.SeqlenQ+position)*dModel+i)
			}
		}
	}
	for tensor, shard := range []**array{&l.x, &l.dout, &l.out, &l.dx} {
		whole := newArray(ringattn.DTypeFloat32, desc.Batch*desc.SeqlenQ*dModel)
		whole.fill(1, uint64(tensor))
		*shard = newArray(ringattn.DTypeFloat32, int64(len(l.indices)))
		for i, index := range l.indices {
			(*shard).set(int64(i), whole.get(index))
		}
	}
	for i, weight := range l.weights {
		weight.fill(2, uint64(i))
		for n := range weight.count {
			weight.set(n, weight.get(n)/2)
		}
	}
	return l
}

func (l *layer) forward() ringattn.MHAForwardArgs {
	args := withWeights(allPacked(l.weights))
	args.X, args.Out, args.Activations = l.x.packed(), l.out.packed(), l.activations
	return args
}

func (l *layer) backward() ringattn.MHABackwardArgs {
	args := withGradients(l.forward().Backward(), allPacked(l.gradients))
	args.DOut, args.DX = l.dout.packed(), l.dx.packed()
	args.Reduce = true
	return args
}

// run makes both passes.
func (l *layer) run(c *ringattn.Context) error {
	err := c.MHAForward(background, l.desc, l.mha, l.forward())
	if err == nil {
		err = c.MHABackward(background, l.desc, l.mha, l.backward())
	}
	return err
}

// hashes is of all that a layer writes.
func (l *layer) hashes() string {
	hashes := []string{l.out.hash(), l.dx.hash()}
	for _, gradient := range l.gradients {
		hashes = append(hashes, gradient.hash())
	}
	return strings.Join(hashes, " ")
}

// runLayers runs a layer on every rank of a new group.
func runLayers(t *testing.T, worldSize int32, desc ringattn.AttentionDesc, mha ringattn.MHADesc) []*layer {
	group, layers := newGroup(t, worldSize), make([]*layer, worldSize)
	err := onEveryRank(worldSize, func(rank int32) error {
		layers[rank] = newLayer(t, group[rank], desc, mha)
		return layers[rank].run(group[rank])
	})
	if err != nil {
		t.Fatal(err)
	}
	return layers
}

// mustBeNear compares numbers of a with those that `expected` gives for their places.
func mustBeNear(t *testing.T, what string, a *array, expected func(i int64) float32) {
	t.Helper()
	largest := 1.0
	for i := range a.count {
		largest = max(largest, math.Abs(float64(expected(i))))
	}
	for i := range a.count {
		if got, want := a.get(i), expected(i); math.Abs(float64(got-want)) > 1e-4*largest {
			t.Fatalf("%s[%d] is %v, not %v", what, i, got, want)
		}
	}
}

func TestLayersOfTwoRanksAreThatOfOne(t *testing.T) {
	desc, mha := describeLayer()
	whole := runLayers(t, 1, desc, mha)[0]
	shards := runLayers(t, 2, desc, mha)
	for _, shard := range shards {
		mustBeNear(t, "out", shard.out, func(i int64) float32 { return whole.out.get(shard.indices[i]) })
		mustBeNear(t, "dx", shard.dx, func(i int64) float32 { return whole.dx.get(shard.indices[i]) })
		for n, gradient := range shard.gradients {
			mustBeNear(t, "a gradient", gradient, whole.gradients[n].get)
			if gradient.hash() != shards[0].gradients[n].hash() {
				t.Errorf("gradient %d differs between ranks", n)
			}
		}
	}
}

// What is kept, and what is computed again, changes nothing; neither does what activations held before.
func TestCheckpointsGiveTheSameBits(t *testing.T) {
	desc, mha := describeLayer()
	group := newGroup(t, 2)
	err := onEveryRank(2, func(rank int32) error {
		c, first := group[rank], ""
		for _, checkpoint := range []ringattn.Checkpoint{ringattn.CheckpointAttention, ringattn.CheckpointAll, ringattn.CheckpointInput} {
			mha := mha
			mha.Checkpoint = checkpoint
			l := newLayer(t, c, desc, mha)
			for range 2 {
				if err := l.run(c); err != nil {
					return err
				}
				if first == "" {
					first = l.hashes()
				}
				if l.hashes() != first {
					t.Errorf("results differ with %v", mha.Checkpoint)
				}
			}
			needs, err1 := c.MHARequirements(desc, mha)
			statistics, err2 := c.Statistics()
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			if (needs.Activations == 0) != (mha.Checkpoint == ringattn.CheckpointInput) || needs.ForwardFlops <= 0 || needs.BackwardWorkspace == 0 {
				t.Errorf("%v needs %+v", mha.Checkpoint, needs)
			}
			if statistics.ProjectionSeconds <= 0 {
				t.Errorf("statistics are %+v", statistics)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Two micro-batches, of which the second reduces, are twice one.
func TestGradientsAccumulate(t *testing.T) {
	desc, mha := describeLayer()
	once := runLayers(t, 2, desc, mha)
	group := newGroup(t, 2)
	err := onEveryRank(2, func(rank int32) error {
		l := newLayer(t, group[rank], desc, mha)
		for _, isLast := range []bool{false, true} {
			args := l.backward()
			args.Accumulate, args.Reduce = isLast, isLast
			err := group[rank].MHAForward(background, desc, mha, l.forward())
			if err == nil {
				err = group[rank].MHABackward(background, desc, mha, args)
			}
			if err != nil {
				return err
			}
		}
		if l.dx.hash() != once[rank].dx.hash() {
			t.Error("dx has accumulated")
		}
		for n, gradient := range l.gradients {
			mustBeNear(t, "a gradient", gradient, func(i int64) float32 { return 2 * once[rank].gradients[n].get(i) })
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Of no gradient but one; and of a layer that has neither biases nor norms, in bfloat16.
func TestGradientsThatAreNotWanted(t *testing.T) {
	desc, mha := describeLayer()
	desc.DType = ringattn.DTypeBFloat16
	mha.HasQKVBias, mha.HasOutBias, mha.NormalizeHeads = false, false, false
	c := newGroup(t, 1)[0]
	tensor := func(count int64) ringattn.Tensor {
		a := newArray(desc.DType, count)
		a.fill(3, uint64(count%16))
		return a.packed()
	}
	w := newWeights(desc, mha, ringattn.DTypeFloat32)
	forward := ringattn.MHAForwardArgs{X: tensor(480), WQ: tensor(w[0].count), WK: tensor(w[1].count), WV: tensor(w[2].count),
		WO: tensor(w[3].count), Out: tensor(480)}
	var err error
	if forward.Activations, err = c.NewActivations(desc, mha); err != nil {
		t.Fatal(err)
	}
	backward := forward.Backward()
	backward.DOut, backward.DWV = tensor(480), w[2].packed()
	err = errors.Join(c.MHAForward(background, desc, mha, forward), c.MHABackward(background, desc, mha, backward))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(slice[float32](w[2]), func(g float32) bool { return g != 0 }) {
		t.Error("the gradient that is wanted is 0")
	}
}

func TestRefusalsOfLayers(t *testing.T) {
	c := newGroup(t, 1)[0]
	half := ringattn.Packed(make([]ringattn.BFloat16, 480))
	type change = func(*ringattn.AttentionDesc, *ringattn.MHADesc, *ringattn.MHAForwardArgs, *ringattn.MHABackwardArgs)
	refused := func(isBackward bool, words string, change change) {
		t.Helper()
		desc, mha := describeLayer()
		l := newLayer(t, c, desc, mha)
		forward, backward := l.forward(), l.backward()
		change(&desc, &mha, &forward, &backward)
		var err error
		if isBackward {
			err = c.MHABackward(background, desc, mha, backward)
		} else {
			err = c.MHAForward(background, desc, mha, forward)
		}
		mustBe(t, err, ringattn.ErrInvalidArgument, strings.Split(words, "|")...)
	}
	type (
		D = *ringattn.AttentionDesc
		M = *ringattn.MHADesc
		F = *ringattn.MHAForwardArgs
		B = *ringattn.MHABackwardArgs
	)
	refused(false, "x is of BFLOAT16|must be of FLOAT32", func(d D, m M, f F, b B) { f.X = half })
	refused(false, "norm_q is of BFLOAT16", func(d D, m M, f F, b B) { f.NormQ = half })
	refused(true, "dw_k is of BFLOAT16; must be of FLOAT32", func(d D, m M, f F, b B) { b.DWK = half })
	refused(true, "dw_k is of BFLOAT16; must be of FLOAT32", func(d D, m M, f F, b B) {
		d.DType = ringattn.DTypeBFloat16
		*b = ringattn.MHABackwardArgs{DWK: half}
	})
	refused(true, "dx is of FLOAT32; must be of FLOAT16", func(d D, m M, f F, b B) { d.GradDType = ringattn.DTypeFloat16 })
	refused(false, "b_k|NULL", func(d D, m M, f F, b B) { f.BK = ringattn.Tensor{} })
	refused(false, "b_q|NULL", func(d D, m M, f F, b B) { m.HasQKVBias = false })
	refused(false, "w_q.size|1276|1280", func(d D, m M, f F, b B) { f.WQ = ringattn.Packed(make([]float32, 319)) })
	refused(false, "d_model|1073741824", func(d D, m M, f F, b B) { m.DModel = 1 << 30 })
	refused(false, "has_key_bias", func(d D, m M, f F, b B) { d.HasKeyBias = true })
	refused(false, "w_v is device memory", func(d D, m M, f F, b B) {
		f.WV = ringattn.Device(ringattn.DTypeFloat32, 4096, 0, ringattn.Strides{})
	})
	refused(false, "activations is device memory", func(d D, m M, f F, b B) { f.Activations = ringattn.DeviceBuffer(4096, 1<<30) })
	refused(false, "activations is NULL", func(d D, m M, f F, b B) { f.Activations = ringattn.Buffer{} })
	refused(true, "activations is NULL", func(d D, m M, f F, b B) { b.Activations = ringattn.Buffer{} })
	refused(false, "activations_size is 64", func(d D, m M, f F, b B) { f.Activations = ringattn.NewBuffer(64) })
	refused(true, "activations is set", func(d D, m M, f F, b B) { m.Checkpoint = ringattn.CheckpointInput })
	refused(false, "workspace_size is 64", func(d D, m M, f F, b B) { f.Workspace = ringattn.NewBuffer(64) })

	desc, mha := describeLayer()
	desc.NumSinks = 1
	_, err := c.NewActivations(desc, mha)
	mustBe(t, err, ringattn.ErrInvalidArgument, "num_sinks is 1")
}

func TestLayersThatDiffer(t *testing.T) {
	group := newGroup(t, 2)
	onEveryRank(2, func(rank int32) error {
		desc, mha := describeLayer()
		mha.RotaryBase += float32(rank)
		mustBe(t, newLayer(t, group[rank], desc, mha).run(group[rank]), ringattn.ErrMismatch, "rotary_base")
		return nil
	})
}

func TestCancelALayer(t *testing.T) {
	ctx, cancel := context.WithCancel(background)
	time.AfterFunc(20*time.Millisecond, cancel)
	group := newGroup(t, 2)
	desc, mha := describeLayer()
	l := newLayer(t, group[0], desc, mha)
	inTime(t, "a cancelled layer", func() {
		err := group[0].MHAForward(ctx, desc, mha, l.forward())
		mustBe(t, err, ringattn.ErrAborted)
		mustBe(t, err, context.Canceled)
	})
}

func TestAllReduce(t *testing.T) {
	for _, worldSize := range []int32{1, 2} {
		group, data := newGroup(t, worldSize), make([]*array, worldSize)
		sum := make([]float32, 1001)
		for rank := range data {
			data[rank] = newArray(ringattn.DTypeFloat32, 1001)
			data[rank].fill(uint64(rank), 0)
			for i := range sum {
				sum[i] += data[rank].get(int64(i))
			}
		}
		err := onEveryRank(worldSize, func(rank int32) error {
			return errors.Join(group[rank].AllReduce(background, slice[float32](data[rank])), group[rank].AllReduce(background, nil))
		})
		if err != nil {
			t.Fatal(err)
		}
		for rank := range data {
			if !slices.Equal(slice[float32](data[rank]), sum) {
				t.Errorf("rank %d of %d has not the sums", rank, worldSize)
			}
		}
	}
	group := newGroup(t, 2)
	onEveryRank(2, func(rank int32) error {
		mustBe(t, group[rank].AllReduce(background, make([]float32, 10+rank)), ringattn.ErrMismatch)
		return nil
	})
}

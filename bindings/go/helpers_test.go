package ringattn_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"ringattn.dev/go/ringattn"
)

var background = context.Background()

// array is the memory of a tensor of any element type.
type array struct {
	dtype ringattn.DType
	count int64
	data  []uint64 // more than it needs
}

func newArray(dtype ringattn.DType, count int64) *array {
	return &array{dtype, count, make([]uint64, count/2+1)}
}

func slice[T ringattn.Element](a *array) []T {
	return unsafe.Slice((*T)(unsafe.Pointer(&a.data[0])), a.count)
}

func (a *array) tensor(strides ringattn.Strides) ringattn.Tensor {
	switch a.dtype {
	case ringattn.DTypeBFloat16:
		return ringattn.Strided(slice[ringattn.BFloat16](a), strides)
	case ringattn.DTypeFloat16:
		return ringattn.Strided(slice[ringattn.Float16](a), strides)
	}
	return ringattn.Strided(slice[float32](a), strides)
}

func (a *array) packed() ringattn.Tensor { return a.tensor(ringattn.Strides{}) }

func (a *array) get(i int64) float32 {
	switch a.dtype {
	case ringattn.DTypeBFloat16:
		return slice[ringattn.BFloat16](a)[i].Float32()
	case ringattn.DTypeFloat16:
		return slice[ringattn.Float16](a)[i].Float32()
	}
	return slice[float32](a)[i]
}

func (a *array) set(i int64, x float32) {
	switch a.dtype {
	case ringattn.DTypeBFloat16:
		slice[ringattn.BFloat16](a)[i] = ringattn.ToBFloat16(x)
	case ringattn.DTypeFloat16:
		slice[ringattn.Float16](a)[i] = ringattn.ToFloat16(x)
	default:
		slice[float32](a)[i] = x
	}
}

// fill writes the numbers of tensor t of a case (bindings/conformance/README.md).
func (a *array) fill(seed, t uint64) {
	for i := range a.count {
		z := (seed*16+t)<<32 + uint64(i) + 0x9E3779B97F4A7C15
		z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
		z = (z ^ z>>27) * 0x94D049BB133111EB
		z ^= z >> 31
		a.set(i, float32(z>>57)/64-1)
	}
}

func (a *array) hash() string {
	size := int64(2)
	if a.dtype == ringattn.DTypeFloat32 {
		size = 4
	}
	h := fnv.New64a()
	h.Write(unsafe.Slice((*byte)(unsafe.Pointer(&a.data[0])), a.count*size))
	return fmt.Sprintf("%016x", h.Sum64())
}

// shape is what a description says of the tensor of a name.
type shape struct {
	side       ringattn.Side
	heads, dim int64
	dtype      ringattn.DType
}

func shapeOf(d ringattn.AttentionDesc, name string) shape {
	orElse := func(value, none, other int64) int64 {
		if value == none {
			return other
		}
		return value
	}
	dtype := func(own ringattn.DType) ringattn.DType { return ringattn.DType(orElse(int64(own), 0, int64(d.DType))) }
	headsKV, dimV := orElse(d.NumHeadsKV, 0, d.NumHeadsQ), orElse(d.HeadDimV, 0, d.HeadDim)
	return map[string]shape{
		"q":    {ringattn.SideQuery, d.NumHeadsQ, d.HeadDim, d.DType},
		"k":    {ringattn.SideKeyValue, headsKV, d.HeadDim, d.DType},
		"v":    {ringattn.SideKeyValue, headsKV, dimV, d.DType},
		"out":  {ringattn.SideQuery, d.NumHeadsQ, dimV, dtype(d.OutDType)},
		"dout": {ringattn.SideQuery, d.NumHeadsQ, dimV, dtype(d.OutDType)},
		"lse":  {ringattn.SideQuery, d.NumHeadsQ, 1, ringattn.DTypeFloat32},
		"dq":   {ringattn.SideQuery, d.NumHeadsQ, d.HeadDim, dtype(d.GradDType)},
		"dk":   {ringattn.SideKeyValue, headsKV, d.HeadDim, dtype(d.GradDType)},
		"dv":   {ringattn.SideKeyValue, headsKV, dimV, dtype(d.GradDType)},

		"key_bias": {ringattn.SideKeyValue, 1, 1, ringattn.DTypeFloat32},
	}[name]
}

// tokensOf is the shape of x, dx, out or dout of a layer.
func tokensOf(d ringattn.AttentionDesc, m ringattn.MHADesc, name string) shape {
	like := map[string]string{"x": "q", "dx": "dq"}[name]
	if like == "" {
		like = name
	}
	return shape{ringattn.SideQuery, 1, m.DModel, shapeOf(d, like).dtype}
}

// newShard makes the tensor of one rank; of the only rank, it is the whole one.
func newShard(d ringattn.AttentionDesc, name string, worldSize, rank int32) (*array, error) {
	return shapeOf(d, name).shard(d, worldSize, rank)
}

func (s shape) shard(d ringattn.AttentionDesc, worldSize, rank int32) (*array, error) {
	length, err := d.ShardLength(worldSize, rank, s.side)
	if err != nil {
		return nil, err
	}
	return newArray(s.dtype, d.Batch*length*s.heads*s.dim), nil
}

// problem is a description and the tensors of one rank.
type problem struct {
	desc ringattn.AttentionDesc
	of   map[string]*array
}

func newProblem(t testing.TB, desc ringattn.AttentionDesc, worldSize, rank int32) problem {
	p := problem{desc, map[string]*array{}}
	for i, name := range []string{"q", "k", "v", "dout", "out", "lse", "dq", "dk", "dv"} {
		shard, err := newShard(desc, name, worldSize, rank)
		if err != nil {
			t.Fatal(err)
		}
		if i < 4 {
			shard.fill(uint64(rank)+1, uint64(i))
		}
		p.of[name] = shard
	}
	return p
}

func (p problem) forward() ringattn.ForwardArgs {
	return ringattn.ForwardArgs{Q: p.of["q"].packed(), K: p.of["k"].packed(), V: p.of["v"].packed(),
		Out: p.of["out"].packed(), LSE: p.of["lse"].packed()}
}

func (p problem) backward() ringattn.BackwardArgs {
	return ringattn.BackwardArgs{DOut: p.of["dout"].packed(), Q: p.of["q"].packed(), K: p.of["k"].packed(), V: p.of["v"].packed(),
		Out: p.of["out"].packed(), LSE: p.of["lse"].packed(),
		DQ: p.of["dq"].packed(), DK: p.of["dk"].packed(), DV: p.of["dv"].packed()}
}

// describe is a small causal problem.
func describe(seqlen int64) ringattn.AttentionDesc {
	d := ringattn.NewAttentionDesc()
	d.SeqlenQ = seqlen
	d.NumHeadsQ = 2
	d.HeadDim = 8
	d.Mask = ringattn.MaskCausal
	return d
}

// join makes the context of one rank, when all have come.
func join(transport ringattn.Transport, id string, worldSize, rank int32) (*ringattn.Context, error) {
	config := ringattn.NewContextConfig()
	config.Rank, config.WorldSize, config.UniqueID = rank, worldSize, id
	config.Transport = transport
	config.NumThreads = 1
	config.Timeout = time.Minute
	return ringattn.NewContext(config)
}

// newGroup makes the contexts of a group of ranks, which the test closes in the end.
func newGroup(t testing.TB, worldSize int32) []*ringattn.Context {
	return newGroupOver(t, ringattn.TransportLocal, worldSize)
}

func newGroupOver(t testing.TB, transport ringattn.Transport, worldSize int32) []*ringattn.Context {
	id, err := ringattn.NewUniqueID(transport, "")
	if err != nil {
		t.Fatal(err)
	}
	group := make([]*ringattn.Context, worldSize)
	err = onEveryRank(worldSize, func(rank int32) (err error) {
		group[rank], err = join(transport, id, worldSize, rank)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range group {
			c.Close()
		}
	})
	return group
}

// onEveryRank runs work in a goroutine for each rank.
func onEveryRank(worldSize int32, work func(rank int32) error) error {
	failures := make([]error, worldSize)
	var group sync.WaitGroup
	for rank := range worldSize {
		group.Add(1)
		go func() {
			defer group.Done()
			failures[rank] = work(rank)
		}()
	}
	group.Wait()
	return errors.Join(failures...)
}

// mustBe fails unless err is of the status that target stands for and says all words.
func mustBe(t testing.TB, err, target error, words ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("error is %v; must be %v", err, target)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("no %q in: %v", word, err)
		}
	}
}

// inTime fails the test if f takes longer than a minute.
func inTime(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s takes more than a minute", what)
	}
}

// fieldOf finds a record's field by its name in C.
func fieldOf(record reflect.Value, name string) reflect.Value {
	name = strings.ReplaceAll(strings.TrimSuffix(name, "_ms"), "_", "")
	return record.FieldByNameFunc(func(field string) bool { return strings.EqualFold(field, name) })
}

package ringattn_test

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"ringattn.dev/go/ringattn"
)

// Executes bindings/conformance/cases.json, as the README there says.

type fields map[string]json.RawMessage

type resultCase struct {
	Name       string
	WorldSize  int32 `json:"world_size"`
	Seed       uint64
	Accumulate bool
	Reduce     bool
	Config     fields
	Desc       fields
	MHA        fields
	Cache      fields
	Calls      []cacheCall
	Expected   map[string]struct {
		Tolerance float64
		At        []int64
		Values    []any
	}
}

type errorCase struct {
	Name      string
	Call      string
	Config    fields
	Desc      fields
	MHA       fields
	Cache     fields
	Rates     fields
	Arguments fields
	Tensors   map[string]struct {
		Elements    *int64
		BatchStride int64 `json:"batch_stride"`
		SeqStride   int64 `json:"seq_stride"`
		HeadStride  int64 `json:"head_stride"`
	}
	refusal
}

// refusal is what a call that fails must say.
type refusal struct {
	Status ringattn.Status
	Words  []string
}

func (r refusal) check(err error) error {
	var failure *ringattn.Error
	if !errors.As(err, &failure) || failure.Status != r.Status {
		return fmt.Errorf("error is %v; must be %v", err, r.Status)
	}
	for _, word := range r.Words {
		if !strings.Contains(failure.Message, word) {
			return fmt.Errorf("no %q in: %s", word, failure.Message)
		}
	}
	return nil
}

// readJSON reads what an environment variable names. A user who runs the tests alone has none; CTest says that there must be one.
func readJSON(t *testing.T, variable string, to any) {
	path, found := os.LookupEnv(variable)
	if !found && os.Getenv("RINGATTN_CONFORMANCE_REQUIRED") != "" {
		t.Fatalf("%s is not set", variable)
	}
	if !found {
		t.Skipf("%s is not set; it names bindings/conformance/cases.json, or what ./dev test has C write", variable)
	}
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// set gives a record the fields that a case has, by their names in C.
func (f fields) set(record any) error {
	for name, text := range f {
		field := fieldOf(reflect.ValueOf(record).Elem(), name)
		if !field.IsValid() {
			return fmt.Errorf("%T has no field %s", record, name)
		}
		if err := setField(field, text); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func setField(field reflect.Value, text json.RawMessage) error {
	var word string
	isWord := json.Unmarshal(text, &word) == nil
	switch to := field.Addr().Interface().(type) {
	case encoding.TextUnmarshaler:
		return to.UnmarshalText([]byte(word))
	case *time.Duration:
		var milliseconds int64
		err := json.Unmarshal(text, &milliseconds)
		*to = time.Duration(milliseconds) * time.Millisecond
		return err
	case *float32:
		if isWord { // what JSON has no numbers for
			_, err := fmt.Sscan(word, to)
			return err
		}
	}
	return json.Unmarshal(text, field.Addr().Interface())
}

func TestConformance(t *testing.T) {
	var cases struct {
		Results []resultCase
		Layers  []resultCase
		Caches  []resultCase
		Errors  []errorCase
	}
	readJSON(t, "RINGATTN_CONFORMANCE", &cases)
	var hashes map[string]map[string]string
	t.Run("of_c", func(t *testing.T) { readJSON(t, "RINGATTN_CONFORMANCE_RESULTS", &hashes) })
	if len(cases.Results) < 60 || len(cases.Layers) < 8 || len(cases.Caches) < 8 || len(cases.Errors) < 25 {
		t.Fatalf("%d results, %d layers, %d caches and %d errors; must be 60, 8, 8 and 25 at least",
			len(cases.Results), len(cases.Layers), len(cases.Caches), len(cases.Errors))
	}
	for _, c := range slices.Concat(cases.Results, cases.Layers, cases.Caches) {
		t.Run(c.Name, func(t *testing.T) {
			run := c.run
			if c.MHA != nil {
				run = c.runLayer
			} else if c.Cache != nil {
				run = c.runCache
			}
			whole, err := run()
			if err != nil {
				t.Fatal(err)
			}
			c.compare(t, whole)
			for name, hash := range hashes[c.Name] {
				if got := whole[name].hash(); got != hash {
					t.Errorf("%s hashes to %s; in C to %s", name, got, hash)
				}
			}
			if hashes != nil && len(hashes[c.Name]) == 0 {
				t.Errorf("C has no results")
			}
		})
	}
	for _, c := range cases.Errors {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.check(c.run()); err != nil {
				t.Error(err)
			}
		})
	}
}

// ---------------------------------------------------------------- results

// run executes the case and gives all whole tensors.
func (c *resultCase) run() (map[string]*array, error) {
	desc := ringattn.NewAttentionDesc()
	if err := c.Desc.set(&desc); err != nil {
		return nil, err
	}
	id, err := ringattn.NewUniqueID(ringattn.TransportLocal, "")
	if err != nil {
		return nil, err
	}
	whole := map[string]*array{}
	for _, name := range []string{"q", "k", "v", "dout", "out", "lse", "dq", "dk", "dv"} {
		if whole[name], err = newShard(desc, name, 1, 0); err != nil {
			return nil, err
		}
		number := slices.Index([]string{"q", "k", "v", "dout", "dq", "dk", "dv"}, name)
		if number >= 4 && !c.Accumulate {
			continue
		}
		if number >= 0 {
			whole[name].fill(c.Seed, uint64(number))
		}
	}
	if desc.HasKeyBias {
		if whole["key_bias"], err = newShard(desc, "key_bias", 1, 0); err != nil {
			return nil, err
		}
		whole["key_bias"].fill(c.Seed, 7)
	}
	sinks := newArray(ringattn.DTypeFloat32, desc.NumHeadsQ*desc.NumSinks)
	sinks.fill(c.Seed, 8)
	dsinks := make([]*array, c.WorldSize)
	for rank := range dsinks {
		dsinks[rank] = newArray(ringattn.DTypeFloat32, sinks.count)
	}
	if c.Accumulate {
		dsinks[0].fill(c.Seed, 9)
	}
	err = onEveryRank(c.WorldSize, func(rank int32) error { return c.runRank(desc, id, rank, whole, sinks, dsinks[rank]) })
	if err == nil && desc.DropoutProbability > 0 {
		whole["dropout_mask"], err = dropoutMask(desc)
	}
	whole["dsinks"] = dsinks[0]
	for _, share := range dsinks[1:] {
		for i := range share.count {
			dsinks[0].set(i, dsinks[0].get(i)+share.get(i))
		}
	}
	return whole, err
}

// dropoutMask has 1 for each pair that is kept, [Batch, NumHeadsQ, SeqlenQ, SeqlenKV].
func dropoutMask(desc ringattn.AttentionDesc) (*array, error) {
	keys, err := desc.ShardLength(1, 0, ringattn.SideKeyValue)
	rows := desc.Batch * desc.NumHeadsQ * desc.SeqlenQ
	all := newArray(ringattn.DTypeFloat32, rows*keys)
	row := make([]bool, keys)
	middle := keys / 3
	for n := int64(0); n < rows && err == nil; n++ {
		entry, head, query := n/desc.SeqlenQ/desc.NumHeadsQ, n/desc.SeqlenQ%desc.NumHeadsQ, n%desc.SeqlenQ
		err = errors.Join(desc.DropoutMask(entry, head, query, 0, row[:middle]), desc.DropoutMask(entry, head, query, middle, row[middle:]))
		for key, isKept := range row {
			if isKept {
				all.set(n*keys+int64(key), 1)
			}
		}
	}
	return all, err
}

func (c *resultCase) join(id string, worldSize, rank int32) (*ringattn.Context, error) {
	config := ringattn.NewContextConfig()
	if err := c.Config.set(&config); err != nil {
		return nil, err
	}
	config.Rank, config.WorldSize, config.UniqueID = rank, worldSize, id
	return ringattn.NewContext(config)
}

// runRank writes this rank's dsinks.
func (c *resultCase) runRank(desc ringattn.AttentionDesc, id string, rank int32, whole map[string]*array, sinks, dsinks *array) error {
	ranks, err := c.join(id, c.WorldSize, rank)
	if err != nil {
		return err
	}
	defer ranks.Close()

	p := problem{desc, map[string]*array{}}
	for name := range whole {
		if p.of[name], err = newShard(desc, name, c.WorldSize, rank); err != nil {
			return err
		}
		if err := c.copy(ringattn.AttentionDesc.SplitSequence, desc, rank, name, shapeOf(desc, name), whole[name], p.of[name]); err != nil {
			return err
		}
	}
	forward, args := p.forward(), p.backward()
	if bias := p.of["key_bias"]; bias != nil {
		forward.KeyBias, args.KeyBias = bias.packed(), bias.packed()
	}
	if sinks.count > 0 {
		forward.Sinks, args.Sinks, args.DSinks = sinks.packed(), sinks.packed(), dsinks.packed()
	}
	if err := ranks.Forward(background, desc, forward); err != nil {
		return err
	}
	args.Accumulate = c.Accumulate
	if err := ranks.Backward(background, desc, args); err != nil {
		return err
	}
	for _, name := range []string{"out", "lse", "dq", "dk", "dv"} { // ranks write to places apart
		if err := c.copy(ringattn.AttentionDesc.JoinSequence, desc, rank, name, shapeOf(desc, name), whole[name], p.of[name]); err != nil {
			return err
		}
	}
	return nil
}

// copy moves tokens between a whole tensor and a shard.
func (c *resultCase) copy(function func(ringattn.AttentionDesc, int32, int32, ringattn.SequenceArgs) error,
	desc ringattn.AttentionDesc, rank int32, name string, s shape, whole, shard *array) error {
	args := ringattn.NewSequenceArgs()
	args.Side, args.DType, args.NumHeads, args.Dim = s.side, s.dtype, s.heads, s.dim
	args.Whole, args.Shard = whole.packed(), shard.packed()
	if name == "lse" {
		args.Whole, args.Shard = rowsOfHeads(whole, desc.Batch, s.heads), rowsOfHeads(shard, desc.Batch, s.heads)
	}
	return function(desc, c.WorldSize, rank, args)
}

// rowsOfHeads is an lse [batch, heads, n] as a tensor [batch, n, heads, 1].
func rowsOfHeads(a *array, batch, heads int64) ringattn.Tensor {
	n := a.count / (batch * heads)
	return a.tensor(ringattn.Strides{Batch: heads * n, Seq: 1, Head: n})
}

func (c *resultCase) compare(t *testing.T, whole map[string]*array) {
	for name, expected := range c.Expected {
		for n, at := range expected.At {
			got := float64(whole[name].get(at))
			value, isNumber := expected.Values[n].(float64)
			isRight := math.Abs(got-value) <= expected.Tolerance
			if !isNumber {
				isRight = expected.Values[n] == "-inf" && math.IsInf(got, -1)
			}
			if !isRight {
				t.Errorf("%s[%d] is %v, not %v", name, at, got, expected.Values[n])
			}
		}
	}
	if len(c.Expected) == 0 {
		t.Error("nothing is expected")
	}
}

// ---------------------------------------------------------------- layers

// runLayer executes a case that has a mha and gives all whole tensors.
func (c *resultCase) runLayer() (map[string]*array, error) {
	desc, mha := ringattn.NewAttentionDesc(), ringattn.NewMHADesc()
	if err := errors.Join(c.Desc.set(&desc), c.MHA.set(&mha)); err != nil {
		return nil, err
	}
	id, err := ringattn.NewUniqueID(ringattn.TransportLocal, "")
	if err != nil {
		return nil, err
	}
	whole := map[string]*array{}
	for _, name := range []string{"x", "dout", "out", "dx"} {
		if whole[name], err = tokensOf(desc, mha, name).shard(desc, 1, 0); err != nil {
			return nil, err
		}
	}
	whole["x"].fill(c.Seed, 0)
	whole["dout"].fill(c.Seed, 11)
	weights := newWeights(desc, mha, desc.DType)
	for i, weight := range weights {
		weight.fill(c.Seed, uint64(i)+1)
	}
	gradients := make([][10]*array, c.WorldSize)
	err = onEveryRank(c.WorldSize, func(rank int32) (err error) {
		gradients[rank], err = c.runLayerOfRank(desc, mha, id, rank, whole, weights)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, name := range weightNames {
		whole["d"+name] = gradients[0][i]
		for _, other := range gradients {
			if other[i].hash() != gradients[0][i].hash() {
				return nil, fmt.Errorf("d%s is not the same on every rank", name)
			}
		}
	}
	return whole, nil
}

// runLayerOfRank gives the gradients of weights.
func (c *resultCase) runLayerOfRank(desc ringattn.AttentionDesc, mha ringattn.MHADesc, id string, rank int32,
	whole map[string]*array, weights [10]*array) ([10]*array, error) {
	l := &layer{desc: desc, mha: mha, weights: weights, gradients: newWeights(desc, mha, ringattn.DTypeFloat32)}
	ranks, err := c.join(id, c.WorldSize, rank)
	if err != nil {
		return l.gradients, err
	}
	defer ranks.Close()
	if l.activations, err = ranks.NewActivations(desc, mha); err != nil {
		return l.gradients, err
	}
	for name, shard := range map[string]**array{"x": &l.x, "dout": &l.dout, "out": &l.out, "dx": &l.dx} {
		s := tokensOf(desc, mha, name)
		if *shard, err = s.shard(desc, c.WorldSize, rank); err == nil {
			err = c.copy(ringattn.AttentionDesc.SplitSequence, desc, rank, name, s, whole[name], *shard)
		}
		if err != nil {
			return l.gradients, err
		}
	}
	if c.Accumulate && rank == 0 {
		for i, gradient := range l.gradients {
			gradient.fill(c.Seed, uint64(i)+17)
		}
	}
	args := l.backward()
	args.Accumulate, args.Reduce = c.Accumulate, c.Reduce
	if err = ranks.MHAForward(background, desc, mha, l.forward()); err == nil {
		err = ranks.MHABackward(background, desc, mha, args)
	}
	for _, gradient := range l.gradients {
		if err == nil && !c.Reduce && gradient.count > 0 {
			err = ranks.AllReduce(background, slice[float32](gradient))
		}
	}
	for name, shard := range map[string]*array{"out": l.out, "dx": l.dx} { // ranks write to places apart
		if err == nil {
			err = c.copy(ringattn.AttentionDesc.JoinSequence, desc, rank, name, tokensOf(desc, mha, name), whole[name], shard)
		}
	}
	return l.gradients, err
}

// ---------------------------------------------------------------- caches

// cacheCall is a call of a case that has a cache.
type cacheCall struct {
	Call         string
	Sequence     int64
	Length, From int64
	Sequences    []int64
	NumTokens    int64 `json:"num_tokens"`
	Lengths      []int64
	Positions    []int64
	FormerRanks  []int32 `json:"former_ranks"`
	Desc         fields
	Schedule     ringattn.Schedule
	Elements     map[string]int64
	Gives        []json.RawMessage
	refusal
}

// cacheUser is a rank, between two calls of a case.
type cacheUser struct {
	*resultCase
	rank    int32
	ranks   *ringattn.Context
	cache   *ringattn.KVCache
	results map[string]*array
}

func newCache(ranks *ringattn.Context, shape fields) (*ringattn.KVCache, error) {
	desc := ringattn.NewKVCacheDesc()
	if err := shape.set(&desc); err != nil {
		return nil, err
	}
	return ranks.NewKVCache(desc)
}

// runCache gives the results of all ranks, which are the same.
func (c *resultCase) runCache() (map[string]*array, error) {
	groups := slices.DeleteFunc(slices.Clone(c.Calls), func(call cacheCall) bool { return call.FormerRanks == nil })
	ids := make([]string, 1+len(groups)) // of the first group of ranks, and of those after each move
	for i := range ids {
		var err error
		if ids[i], err = ringattn.NewUniqueID(ringattn.TransportLocal, ""); err != nil {
			return nil, err
		}
	}
	users := make([]cacheUser, c.WorldSize)
	err := onEveryRank(c.WorldSize, func(rank int32) error {
		users[rank] = cacheUser{resultCase: c, rank: rank, results: map[string]*array{}}
		return users[rank].run(ids)
	})
	all := map[string]*array{}
	for _, user := range users {
		for name, own := range user.results {
			if all[name] == nil {
				all[name] = own
			}
			if own.hash() != all[name].hash() {
				err = errors.Join(err, fmt.Errorf("%s is not the same on every rank", name))
			}
		}
	}
	return all, err
}

// run makes all calls.
func (u *cacheUser) run(ids []string) (err error) {
	if u.ranks, err = u.join(ids[0], u.WorldSize, u.rank); err != nil {
		return err
	}
	defer func() { u.ranks.Close() }()
	if u.cache, err = newCache(u.ranks, u.Cache); err != nil {
		return err
	}
	defer u.cache.Close()
	for n, call := range u.Calls {
		if former := call.FormerRanks; former != nil {
			now := slices.Index(former, u.rank)
			if now < 0 {
				return nil // gone
			}
			u.ranks.Close()
			ids, u.rank = ids[1:], int32(now)
			if u.ranks, err = u.join(ids[0], int32(len(former)), u.rank); err != nil {
				return err
			}
		}
		given, err := u.make(&call, n)
		if call.Status != ringattn.StatusSuccess {
			err = call.check(err)
		} else if err == nil {
			err = u.compareNumbers(given, call.Gives)
		}
		if err != nil {
			return fmt.Errorf("call %d, rank %d: %w", n, u.rank, err)
		}
	}
	return nil
}

// compareNumbers takes for each number what is expected on every rank, or a list of that on each.
func (u *cacheUser) compareNumbers(given []int64, gives []json.RawMessage) error {
	for i, text := range gives {
		var expected int64
		var ofRanks []int64
		if json.Unmarshal(text, &ofRanks) == nil {
			expected = ofRanks[u.rank]
		} else if err := json.Unmarshal(text, &expected); err != nil {
			return err
		}
		if given[i] != expected {
			return fmt.Errorf("number %d is %d, not %d", i, given[i], expected)
		}
	}
	return nil
}

// make makes a call and gives its numbers.
func (u *cacheUser) make(call *cacheCall, n int) (given []int64, err error) {
	one := func(number int64, err error) ([]int64, error) { return []int64{number}, err }
	switch call.Call {
	case "create_sequence":
		return one(u.cache.CreateSequence())
	case "fork_sequence":
		return one(u.cache.ForkSequence(call.Sequence))
	case "get_sequence_length":
		return one(u.cache.SequenceLength(call.Sequence))
	case "get_lost_tokens":
		return one(u.cache.LostTokens(call.Sequence, call.From))
	case "truncate_sequence":
		return nil, u.cache.TruncateSequence(call.Sequence, call.Length)
	case "free_sequence":
		return nil, u.cache.FreeSequence(call.Sequence)
	case "append":
		return nil, u.append(call, u.Seed+uint64(n))
	case "decode":
		return nil, u.decode(call, u.Seed+uint64(n), n)
	case "move_kv_cache":
		return nil, u.cache.Move(u.ranks, call.FormerRanks)
	case "get_kv_cache_statistics":
		s, err := u.cache.Statistics()
		return []int64{s.NumSequences, s.NumTokens, s.UsedPages, s.FreePages, s.LeastFreePages, s.LostPages, int64(s.Memory)}, err
	}
	return nil, fmt.Errorf("no call %s", call.Call)
}

// tensor has count elements, unless the call says how many.
func (call *cacheCall) tensor(name string, dtype ringattn.DType, count int64) *array {
	if elements, found := call.Elements[name]; found {
		count = elements
	}
	return newArray(dtype, count)
}

func (u *cacheUser) append(call *cacheCall, seed uint64) error {
	desc, shape := ringattn.NewAttentionDesc(), ringattn.NewKVCacheDesc()
	if err := u.Cache.set(&shape); err != nil {
		return err
	}
	desc.DType, desc.NumHeadsKV, desc.HeadDim, desc.HeadDimV = shape.DType, shape.NumHeadsKV, shape.HeadDim, shape.HeadDimV
	tensor := func(name string, number uint64) ringattn.Tensor {
		s := shapeOf(desc, name)
		a := call.tensor(name, s.dtype, int64(len(call.Sequences))*call.NumTokens*s.heads*s.dim)
		a.fill(seed, number)
		return a.packed()
	}
	return u.ranks.Append(u.cache, ringattn.AppendArgs{NumTokens: call.NumTokens, Sequences: call.Sequences, Lengths: call.Lengths,
		Positions: call.Positions, K: tensor("k", 1), V: tensor("v", 2)})
}

func (u *cacheUser) decode(call *cacheCall, seed uint64, n int) error {
	desc := ringattn.NewAttentionDesc()
	if err := errors.Join(u.Desc.set(&desc), call.Desc.set(&desc)); err != nil {
		return err
	}
	tensor := func(name string) *array {
		s := shapeOf(desc, name)
		return call.tensor(name, s.dtype, desc.Batch*desc.SeqlenQ*s.heads*s.dim)
	}
	q, out, lse := tensor("q"), tensor("out"), tensor("lse")
	q.fill(seed, 0)
	sinks := call.tensor("sinks", ringattn.DTypeFloat32, desc.NumHeadsQ*desc.NumSinks)
	sinks.fill(seed, 8)
	args := ringattn.DecodeArgs{Sequences: call.Sequences, Q: q.packed(), Out: out.packed(), LSE: lse.packed(), Sinks: sinks.packed()}
	if err := u.ranks.Decode(background, u.cache, desc, args); err != nil {
		return err
	}
	if ran, err := u.ranks.Statistics(); err != nil || ran.Schedule != call.Schedule {
		return fmt.Errorf("schedule is %v, not %v: %v", ran.Schedule, call.Schedule, err)
	}
	u.results[fmt.Sprint("out_", n)], u.results[fmt.Sprint("lse_", n)] = out, lse
	return nil
}

// ---------------------------------------------------------------- errors

// argument is 0 or "" where the case does not say it, or `other`.
func argument[T any](c *errorCase, name string, other T) T {
	if text, found := c.Arguments[name]; found {
		if err := setField(reflect.ValueOf(&other).Elem(), text); err != nil {
			panic(err)
		}
	}
	return other
}

// zeros is a packed tensor, except as the case says.
func (c *errorCase) zeros(name string, dtype ringattn.DType, count int64) ringattn.Tensor {
	change := c.Tensors[name]
	if change.Elements != nil {
		count = *change.Elements
	}
	return newArray(dtype, count).tensor(ringattn.Strides{Batch: change.BatchStride, Seq: change.SeqStride, Head: change.HeadStride})
}

// run gives the error of the call.
func (c *errorCase) run() error {
	config, desc := ringattn.NewContextConfig(), ringattn.NewAttentionDesc()
	if err := errors.Join(c.Config.set(&config), c.Desc.set(&desc)); err != nil {
		return err
	}
	worldSize, rank := argument(c, "world_size", int32(1)), argument(c, "rank", int32(0))
	side := argument(c, "side", ringattn.SideQuery)
	switch c.Call {
	case "create_unique_id":
		_, err := ringattn.NewUniqueID(argument(c, "transport", ringattn.TransportLocal), argument(c, "bind_address", ""))
		return err
	case "estimate_memory":
		_, err := ringattn.EstimateMemory(config, desc)
		return err
	case "estimate_time":
		rates := ringattn.NewMachineRates()
		if err := c.Rates.set(&rates); err != nil {
			return err
		}
		_, err := ringattn.EstimateTime(config, desc, rates)
		return err
	case "get_shard_length":
		_, err := desc.ShardLength(worldSize, rank, side)
		return err
	case "get_shard_position":
		_, err := desc.ShardPosition(worldSize, rank, side, argument(c, "index", int64(0)))
		return err
	case "get_shard_positions":
		positions := make([]int64, argument(c, "count", int64(1)))
		return desc.ShardPositions(worldSize, rank, side, argument(c, "first", int64(0)), positions)
	case "get_dropout_mask":
		mask := make([]bool, argument(c, "count", int64(1)))
		return desc.DropoutMask(argument(c, "entry", int64(0)), argument(c, "head", int64(0)), argument(c, "query", int64(0)),
			argument(c, "first_key", int64(0)), mask)
	case "split_sequence", "join_sequence":
		return c.runCopy(desc, worldSize, rank, side)
	case "merge_attention":
		return c.runMerge()
	}

	ranks, err := ringattn.NewContext(config)
	if err != nil || c.Call == "create_context" {
		return err
	}
	defer ranks.Close()
	if strings.HasSuffix(c.Call, "_after_abort") {
		if err := ranks.Abort(); err != nil {
			return err
		}
	}
	if c.MHA != nil {
		return c.runLayer(ranks, desc)
	}
	if c.Cache != nil {
		_, err := newCache(ranks, c.Cache)
		return err
	}
	switch c.Call {
	case "all_reduce_after_abort":
		return ranks.AllReduce(background, make([]float32, 4))
	case "check_support":
		_, err := ranks.CheckSupport(desc)
		return err
	case "get_memory_requirements":
		_, err := ranks.MemoryRequirements(desc)
		return err
	case "run_self_test":
		return ranks.RunSelfTest(background, argument(c, "num_problems", int64(1)), argument(c, "seed", int64(1)))
	}

	tensor := func(name string) ringattn.Tensor {
		a, err := newShard(desc, name, 1, 0)
		if err != nil {
			return c.zeros(name, ringattn.DTypeFloat32, 1)
		}
		return c.zeros(name, a.dtype, a.count)
	}
	forward := ringattn.ForwardArgs{Q: tensor("q"), K: tensor("k"), V: tensor("v"), Out: tensor("out"), LSE: tensor("lse")}
	if c.Call != "backward" {
		return ranks.Forward(background, desc, forward)
	}
	return ranks.Backward(background, desc, ringattn.BackwardArgs{DOut: tensor("dout"),
		Q: forward.Q, K: forward.K, V: forward.V, Out: forward.Out, LSE: forward.LSE,
		DQ: tensor("dq"), DK: tensor("dk"), DV: tensor("dv"), Accumulate: argument(c, "accumulate", 0) != 0})
}

// runLayer makes a call of a case that has a mha.
func (c *errorCase) runLayer(ranks *ringattn.Context, desc ringattn.AttentionDesc) error {
	mha := ringattn.NewMHADesc()
	if err := c.MHA.set(&mha); err != nil {
		return err
	}
	_, refusal := ranks.MHARequirements(desc, mha)
	if c.Call == "get_mha_requirements" {
		return refusal
	}
	tensor := func(name string, dtype ringattn.DType, count int64) ringattn.Tensor {
		if refusal != nil {
			count = 1
		}
		return c.zeros(name, dtype, count)
	}
	tokens := func(name string) ringattn.Tensor {
		return tensor(name, tokensOf(desc, mha, name).dtype, desc.Batch*desc.SeqlenQ*mha.DModel)
	}
	var weights, gradients [10]ringattn.Tensor
	for i, list := range newWeights(desc, mha, desc.DType) {
		weights[i] = tensor(weightNames[i], desc.DType, list.count)
		gradients[i] = tensor("d"+weightNames[i], ringattn.DTypeFloat32, list.count)
	}
	forward := withWeights(weights)
	forward.X, forward.Out = tokens("x"), tokens("out")
	if refusal == nil && argument(c, "activations", 1) != 0 {
		var err error
		if forward.Activations, err = ranks.NewActivations(desc, mha); err != nil {
			return err
		}
	}
	if c.Call == "mha_forward" {
		return ranks.MHAForward(background, desc, mha, forward)
	}
	backward := withGradients(forward.Backward(), gradients)
	backward.DOut, backward.DX = tokens("dout"), tokens("dx")
	return ranks.MHABackward(background, desc, mha, backward)
}

func (c *errorCase) runCopy(desc ringattn.AttentionDesc, worldSize, rank int32, side ringattn.Side) error {
	args := ringattn.NewSequenceArgs()
	args.Side = side
	args.NumHeads, args.Dim = argument(c, "num_heads", int64(1)), argument(c, "dim", int64(1))
	row := max(desc.Batch*args.NumHeads*args.Dim, 1)
	whole, _ := desc.ShardLength(1, 0, side)
	shard, _ := desc.ShardLength(worldSize, rank, side)
	args.Whole = c.zeros("whole", ringattn.DTypeFloat32, max(whole, 1)*row)
	args.Shard = c.zeros("shard", ringattn.DTypeFloat32, max(shard, 1)*row)
	if c.Call == "split_sequence" {
		return desc.SplitSequence(worldSize, rank, args)
	}
	return desc.JoinSequence(worldSize, rank, args)
}

func (c *errorCase) runMerge() error {
	args := ringattn.NewMergeArgs()
	args.Batch, args.Seqlen = argument(c, "batch", args.Batch), argument(c, "seqlen", args.Seqlen)
	args.NumHeads, args.HeadDimV = argument(c, "num_heads", args.NumHeads), argument(c, "head_dim_v", args.HeadDimV)
	rows := max(args.Batch*args.Seqlen*args.NumHeads, 1)
	tensor := func(name string, count int64) ringattn.Tensor {
		return c.zeros(name, ringattn.DTypeFloat32, max(count, 1))
	}
	args.OutA, args.OutB, args.Out = tensor("out_a", rows*args.HeadDimV), tensor("out_b", rows*args.HeadDimV), tensor("out", rows*args.HeadDimV)
	args.LSEA, args.LSEB, args.LSE = tensor("lse_a", rows), tensor("lse_b", rows), tensor("lse", rows)
	return ringattn.MergeAttention(args)
}

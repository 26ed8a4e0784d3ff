package ringattn

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"
)

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		made, loaded version
		why          string
	}{
		{version{0, 1, 0}, version{0, 1, 0}, ""},
		{version{0, 1, 0}, version{0, 1, 7}, ""},
		{version{0, 1, 2}, version{0, 1, 1}, "older"},
		{version{0, 1, 0}, version{0, 2, 0}, "minor"},
		{version{0, 2, 0}, version{0, 1, 9}, "minor"},
		{version{0, 9, 0}, version{1, 0, 0}, "major"},
		{version{1, 0, 0}, version{0, 9, 0}, "major"},
		{version{1, 2, 3}, version{1, 3, 0}, ""},
		{version{1, 2, 3}, version{1, 2, 4}, ""},
		{version{1, 2, 3}, version{1, 2, 2}, "older"},
		{version{1, 2, 3}, version{1, 1, 9}, "older"},
		{version{1, 2, 3}, version{2, 2, 3}, "major"},
	} {
		err := refuse(c.made, c.loaded)
		if (err == nil) != (c.why == "") {
			t.Errorf("made for %v, loaded %v: %v", c.made, c.loaded, err)
			continue
		}
		if err != nil {
			for _, word := range []string{c.why, c.made.String(), c.loaded.String()} {
				if !strings.Contains(err.Message, word) {
					t.Errorf("no %q in: %s", word, err.Message)
				}
			}
		}
	}
	if Version() != generatedFrom.String() {
		t.Errorf("the library is %s, the header was of %v", Version(), generatedFrom)
	}
}

// All contexts and caches that nobody closes are freed, once they have been collected.
func TestCleanupFreesAll(t *testing.T) {
	var areFreed []func() bool
	for range 500 {
		config := NewContextConfig()
		config.NumThreads = 1
		c, err := NewContext(config)
		if err != nil {
			t.Fatal(err)
		}
		desc := NewKVCacheDesc()
		desc.NumPages, desc.NumHeadsKV, desc.HeadDim = 1, 1, 1
		x, err := c.NewKVCache(desc)
		if err != nil {
			t.Fatal(err)
		}
		h, ofCache := c.handle, x.handle
		areFreed = append(areFreed, func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.raw == nil
		}, func() bool {
			ofCache.mu.Lock()
			defer ofCache.mu.Unlock()
			return ofCache.raw == nil
		})
	}
	freed := 0
	for begin := time.Now(); freed < len(areFreed) && time.Since(begin) < time.Minute; time.Sleep(time.Millisecond) {
		runtime.GC()
		for freed < len(areFreed) && areFreed[freed]() {
			freed++
		}
	}
	if freed < len(areFreed) {
		t.Errorf("%d of %d contexts and caches are freed", freed, len(areFreed))
	}
}

// What is cancelled says what broke the group, why, and what the call itself said.
func TestErrorsOfACancelledCall(t *testing.T) {
	c, err := NewContext(NewContextConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	refused := &Error{Status: StatusInvalidArgument, Rank: -1, Message: "head_dim is 320"}
	if err := c.handle.cancelled(context.Canceled, refused); err != refused {
		t.Errorf("of a whole group: %v", err)
	}
	c.Abort()
	err = c.handle.cancelled(context.Canceled, refused)
	for _, target := range []error{ErrAborted, context.Canceled, ErrInvalidArgument} {
		if !errors.Is(err, target) || !strings.Contains(err.Error(), "canceled") || !strings.Contains(err.Error(), "head_dim is 320") {
			t.Errorf("no %v in: %v", target, err)
		}
	}
	if failure := err.(*Error); failure.Status != StatusAborted || failure.Rank != 0 {
		t.Errorf("%+v", failure)
	}
}

// Whoever closes, all is freed when Close returns.
func TestEveryCloseWaits(t *testing.T) {
	c, err := NewContext(NewContextConfig())
	if err != nil {
		t.Fatal(err)
	}
	h, err := c.enter()
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan bool)
	for range 2 {
		go func() {
			c.Close()
			closed <- h.raw == nil
		}()
	}
	time.AfterFunc(20*time.Millisecond, func() { c.leave(h) })
	for range 2 {
		if !<-closed {
			t.Error("one has returned, and the context is in use")
		}
	}
}

// Calls on a CUDA context take no slices, which Go may use again while the GPU does.
func TestHostMemoryOnCUDA(t *testing.T) {
	var k keeper
	defer k.release()
	k.onDevice = true
	var address uintptr
	for name, buffer := range map[string]Buffer{"none": {}, "workspace": DeviceBuffer(4096, 64), "q": HostBuffer(make([]byte, 4))} {
		k.pointer(name, &buffer, unsafe.Pointer(&address))
	}
	if k.refusal == nil || !strings.Contains(k.refusal.Message, "q is host memory") {
		t.Error(k.refusal)
	}
}

func TestMilliseconds(t *testing.T) {
	for d, want := range map[time.Duration]int64{0: 0, 1: 1, time.Millisecond: 1, time.Millisecond + 1: 2, -1: -1, -time.Second: -1000} {
		if got := int64(milliseconds(d)); got != want {
			t.Errorf("%v are %d ms; must be %d", d, got, want)
		}
	}
}

// Every Float16 comes back, and what lies between two of them goes to the nearer, halfway to the even one.
func TestFloat16(t *testing.T) {
	value := func(x Float16) float64 {
		if x == 0x7C00 {
			return 65536 // where rounding is concerned
		}
		return float64(x.Float32())
	}
	for x := Float16(0); x < 0x7C00; x++ {
		exponent, fraction := int(x>>10), float64(x&0x3FF)
		want := math.Ldexp(fraction+1024, exponent-25)
		if exponent == 0 {
			want = math.Ldexp(fraction, -24)
		}
		if value(x) != want || -value(x) != float64((x|0x8000).Float32()) {
			t.Fatalf("%#x is %v; must be %v", x, x.Float32(), want)
		}
		below, halfway := float32(value(x)), float32((value(x)+value(x+1))/2)
		even := x + x&1
		for from, to := range map[float32]Float16{below: x, halfway: even, math.Nextafter32(halfway, 0): x, math.Nextafter32(halfway, 1e9): x + 1} {
			if got := ToFloat16(from); got != to {
				t.Fatalf("%v becomes %#x; must be %#x", from, got, to)
			}
			if got := ToFloat16(-from); got != to|0x8000 {
				t.Fatalf("%v becomes %#x; must be %#x", -from, got, to|0x8000)
			}
		}
	}
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	if ToFloat16(inf) != 0x7C00 || ToFloat16(-inf) != 0xFC00 || ToFloat16(1e9) != 0x7C00 || Float16(0x7C00).Float32() != inf {
		t.Error("infinities do not come back")
	}
	if back := ToFloat16(nan).Float32(); back == back {
		t.Error("a NaN does not come back")
	}
}

func TestBFloat16(t *testing.T) {
	for range 100000 {
		bits := rand.Uint32()
		x := math.Float32frombits(bits)
		got := ToBFloat16(x).Float32()
		if x != x {
			if got == got {
				t.Fatalf("NaN %#x becomes %v", bits, got)
			}
			continue
		}
		low, high := math.Float32frombits(bits&0xFFFF0000), math.Float32frombits(bits&0xFFFF0000+0x10000)
		want := low
		if part := bits & 0xFFFF; part > 0x8000 || part == 0x8000 && bits>>16&1 == 1 {
			want = high
		}
		if got != want {
			t.Fatalf("%v (%#x) becomes %v; must be %v", x, bits, got, want)
		}
	}
	if nan := math.Float32frombits(0x7F800001); ToBFloat16(nan).Float32() == ToBFloat16(nan).Float32() {
		t.Error("a NaN whose upper half is that of an infinity becomes one")
	}
}

func TestEnumsAsText(t *testing.T) {
	var sharding Sharding
	if err := sharding.UnmarshalText([]byte("zigzag")); err != nil || sharding != ShardingZigzag {
		t.Errorf("zigzag is %v: %v", sharding, err)
	}
	if err := sharding.UnmarshalText([]byte("round")); err == nil || !strings.Contains(err.Error(), "CONTIGUOUS, ZIGZAG, STRIPED") {
		t.Errorf("round: %v", err)
	}
	if text := Status(99).String(); text != "Status(99)" {
		t.Error(text)
	}
}

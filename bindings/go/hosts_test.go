package ringattn_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ringattn.dev/go/ringattn"
	"ringattn.dev/go/ringattn/internal/process"
)

// The host program survives: what a process is stays as it was, and misuse is an error or nothing.

// useAll makes a group of two ranks, computes with it, breaks it and closes it.
func useAll(t testing.TB) {
	group := newGroup(t, 2)
	call := func() error {
		return onEveryRank(2, func(rank int32) error {
			p := newProblem(t, describe(64), 2, rank)
			return errors.Join(group[rank].Forward(background, p.desc, p.forward()), group[rank].Backward(background, p.desc, p.backward()))
		})
	}
	if err := call(); err != nil {
		t.Error(err)
	}
	group[1].Abort()
	mustBe(t, call(), ringattn.ErrInvalidState)
	for _, c := range group {
		c.Close()
	}
}

func TestProcessStaysAsItWas(t *testing.T) {
	signals, environment := process.Dispositions(), process.Environment()
	useAll(t)
	if now := process.Dispositions(); !slices.Equal(now, signals) {
		t.Errorf("dispositions of signals were\n%s\nand are\n%s", strings.Join(signals, "\n"), strings.Join(now, "\n"))
	}
	if now := process.Environment(); !slices.Equal(now, environment) {
		t.Errorf("the environment was %q and is %q", environment, now)
	}
}

// What the test above compares would show a change.
func TestDispositionsShowAChange(t *testing.T) {
	signals := process.Dispositions()
	process.Ignored(64, func() {
		if slices.Equal(signals, process.Dispositions()) {
			t.Error("signal 64 is ignored now, and nobody sees it")
		}
	})
}

// library is the path of the libringattn that this process has loaded.
func library(t *testing.T) string {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Skip(err)
	}
	path := regexp.MustCompile(`/\S*libringattn\.so\S*`).Find(maps)
	if path == nil {
		t.Skip("libringattn is not a shared library here")
	}
	return string(path)
}

// A program that knows nothing of the library says what the kernel knows of it, with the library loaded and without.
func TestLoadingChangesNothing(t *testing.T) {
	path := library(t)
	run := func(program string, arguments ...string) (string, string) {
		output := func(preload string) string {
			command := exec.Command(program, arguments...)
			command.Env = append(os.Environ(), "LD_PRELOAD="+preload)
			text, err := command.Output()
			if err != nil {
				t.Fatal(err)
			}
			return strings.ReplaceAll(string(text), "LD_PRELOAD="+preload+"\n", "")
		}
		return output(""), output(path)
	}
	if without, with := run("env"); without != with {
		t.Errorf("the environment is\n%s\nand with the library\n%s", without, with)
	}
	// Not SigQ, which counts the queued signals of all the user's processes.
	lines := regexp.MustCompile(`(?m)^(SigPnd|SigBlk|SigIgn|SigCgt|ShdPnd|Threads):.*$`)
	without, with := run("cat", "/proc/self/status")
	if a, b := lines.FindAllString(without, -1), lines.FindAllString(with, -1); len(a) != 6 || !slices.Equal(a, b) {
		t.Errorf("signals and threads are %q, with the library %q", a, b)
	}
}

// ---------------------------------------------------------------- Go's own use of signals

// countSamples counts the different stacks of a CPU profile: field 2 of its message.
func countSamples(t *testing.T, profile io.Reader) int {
	unzipped, err := gzip.NewReader(profile)
	if err != nil {
		t.Fatal(err)
	}
	message, err := io.ReadAll(unzipped)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for len(message) > 0 {
		key, n := binary.Uvarint(message)
		message = message[n:]
		value, n := binary.Uvarint(message)
		message = message[n:]
		if key&7 == 2 { // as many bytes as value
			message = message[value:]
		}
		if key == 2<<3|2 {
			count++
		}
	}
	return count
}

// samples profiles f and gives in how many different places SIGPROF has interrupted it.
func samples(t *testing.T, f func()) int {
	var profile bytes.Buffer
	if err := pprof.StartCPUProfile(&profile); err != nil {
		t.Fatal(err)
	}
	f()
	pprof.StopCPUProfile()
	return countSamples(t, &profile)
}

func spin() {
	for begin := time.Now(); time.Since(begin) < 300*time.Millisecond; {
	}
}

func TestProfilesBeforeDuringAndAfterCalls(t *testing.T) {
	if samples(t, spin) == 0 {
		t.Error("no samples before")
	}
	group := newGroup(t, 2)
	during := samples(t, func() {
		err := onEveryRank(2, func(rank int32) error {
			p := newProblem(t, describe(2048), 2, rank)
			for range 100 {
				if err := group[rank].Forward(background, p.desc, p.forward()); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	if during == 0 {
		t.Error("no samples while ranks compute")
	}
	for _, c := range group {
		c.Close()
	}
	if samples(t, spin) == 0 {
		t.Error("no samples after")
	}
}

// A nil pointer's dereference is a signal, which Go turns into a panic, also while C runs.
func TestRecoversFromNilDereferenceDuringACall(t *testing.T) {
	group := newGroup(t, 2)
	waits := make(chan error)
	go func() {
		p := newProblem(t, describe(64), 2, 0)
		waits <- group[0].Forward(background, p.desc, p.forward())
	}()
	recovered := 0
	for range 1000 {
		func() {
			defer func() {
				if _, is := recover().(runtime.Error); is {
					recovered++
				}
			}()
			var none *int
			*none = 1
		}()
	}
	if recovered != 1000 {
		t.Errorf("recovered %d times of 1000", recovered)
	}
	p := newProblem(t, describe(64), 2, 1)
	if err := errors.Join(group[1].Forward(background, p.desc, p.forward()), <-waits); err != nil {
		t.Error(err)
	}
}

// ---------------------------------------------------------------- closing

// Every method that a Context has, and any that it will have, says INVALID_STATE of one that is closed, or never was.
func TestUseWithoutAContext(t *testing.T) {
	closed := newGroup(t, 1)[0]
	for range 3 {
		if err := closed.Close(); err != nil {
			t.Error(err)
		}
	}
	for name, c := range map[string]*ringattn.Context{"closed": closed, "nil": nil, "zero": {}} {
		c.Close()
		value := reflect.ValueOf(c)
		for i := range value.NumMethod() {
			method := value.Type().Method(i)
			if method.Name == "Close" {
				continue
			}
			arguments := []reflect.Value{}
			for n := 1; n < method.Type.NumIn(); n++ {
				arguments = append(arguments, reflect.Zero(method.Type.In(n)))
			}
			if len(arguments) > 0 && method.Type.In(1) == reflect.TypeFor[context.Context]() {
				arguments[0] = reflect.ValueOf(background)
			}
			results := value.Method(i).Call(arguments)
			err, _ := results[len(results)-1].Interface().(error)
			if !errors.Is(err, ringattn.ErrInvalidState) {
				t.Errorf("%s of a %s context: %v", method.Name, name, err)
			}
		}
	}
}

// Closing ends a call that waits for another rank, waits for it, and is not fooled by more who close at once.
func TestCloseDuringACall(t *testing.T) {
	for range 20 {
		group := newGroup(t, 2)
		p := newProblem(t, describe(64), 2, 0)
		failure := make(chan error)
		go func() { failure <- group[0].Forward(background, p.desc, p.forward()) }()
		time.Sleep(2 * time.Millisecond)
		for range 4 {
			go group[0].Close()
		}
		inTime(t, "Close", func() { group[0].Close() })
		err := <-failure
		if !errors.Is(err, ringattn.ErrAborted) && !errors.Is(err, ringattn.ErrInvalidState) {
			t.Errorf("the call says %v", err)
		}
		mustBe(t, group[0].AsyncError(), ringattn.ErrInvalidState, "closed")
	}
}

// Everything at once: one goroutine calls, others ask, one closes.
func TestCloseWhileOthersAsk(t *testing.T) {
	for range 50 {
		c := newGroup(t, 1)[0]
		p := newProblem(t, describe(64), 1, 0)
		var closed atomic.Bool
		err := onEveryRank(4, func(i int32) error {
			var err error
			for !closed.Load() && err == nil {
				switch i {
				case 0:
					err = c.Forward(background, p.desc, p.forward())
				case 1:
					_, err = c.MemoryRequirements(p.desc)
				case 2:
					_, err = c.Statistics()
				case 3:
					time.Sleep(time.Millisecond)
					closed.Store(true)
					err = c.Close()
				}
			}
			if errors.Is(err, ringattn.ErrInvalidState) || errors.Is(err, ringattn.ErrAborted) {
				return nil
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A context that nobody closed is freed, which the other rank notices.
func TestCleanupClosesWhatNobodyCloses(t *testing.T) {
	group := newGroupToDrop(t)
	inTime(t, "a call whose peer was dropped", func() {
		failure := make(chan error)
		go func() {
			p := newProblem(t, describe(64), 2, 0)
			failure <- group.Forward(background, p.desc, p.forward())
		}()
		for {
			runtime.GC()
			select {
			case err := <-failure:
				mustBe(t, err, ringattn.ErrPeerLost)
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
}

// A call keeps its context, even if that is the last that anybody does with it.
func TestCallKeepsItsContext(t *testing.T) {
	id, err := ringattn.NewUniqueID(ringattn.TransportLocal, "")
	if err != nil {
		t.Fatal(err)
	}
	err = onEveryRank(2, func(rank int32) error {
		config := ringattn.NewContextConfig()
		config.Rank, config.WorldSize, config.UniqueID, config.NumThreads = rank, 2, id, 1
		c, err := ringattn.NewContext(config)
		if err != nil {
			return err
		}
		p := newProblem(t, describe(64), 2, rank)
		if rank == 1 { // meanwhile rank 0 waits
			for range 20 {
				time.Sleep(time.Millisecond)
				runtime.GC()
			}
			defer c.Close()
		}
		return c.Forward(background, p.desc, p.forward())
	})
	if err != nil {
		t.Error(err)
	}
}

// newGroupToDrop gives rank 0 of two, of which rank 1 is unreachable.
func newGroupToDrop(t *testing.T) *ringattn.Context {
	id, err := ringattn.NewUniqueID(ringattn.TransportLocal, "")
	if err != nil {
		t.Fatal(err)
	}
	var kept *ringattn.Context
	err = onEveryRank(2, func(rank int32) error {
		config := ringattn.NewContextConfig()
		config.Rank, config.WorldSize, config.UniqueID, config.NumThreads = rank, 2, id, 1
		c, err := ringattn.NewContext(config)
		if rank == 0 {
			kept = c
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kept.Close() })
	return kept
}

// ---------------------------------------------------------------- memory

// Garbage is collected all the time, and what calls use is reachable from their arguments alone.
func TestCollectionDuringCalls(t *testing.T) {
	desc := func() ringattn.AttentionDesc {
		d := describe(96)
		d.Batch = 2
		d.DocumentOffsetsQ = append([]int64{}, 0, 10, 64, 96)
		d.KVLengths = append([]int64{}, 96, 70)
		return d
	}
	group := newGroup(t, 2)
	calls := func(count int) (hashes [2]string) {
		err := onEveryRank(2, func(rank int32) error {
			for range count {
				p := newProblem(t, desc(), 2, rank)
				forward, backward := p.forward(), p.backward()
				if err := group[rank].Forward(background, desc(), forward); err != nil {
					return err
				}
				if err := group[rank].Backward(background, desc(), backward); err != nil {
					return err
				}
				hash := p.of["out"].hash() + p.of["dq"].hash() + p.of["dk"].hash()
				if hashes[rank] != "" && hashes[rank] != hash {
					return errors.New("results differ from call to call")
				}
				hashes[rank] = hash
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return hashes
	}
	quiet := calls(1)
	defer debug.SetGCPercent(debug.SetGCPercent(1))
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	}()
	stressed := calls(200)
	close(stop)
	<-stopped
	if quiet != stressed {
		t.Error("results differ from those without collection")
	}
}

func residentBytes(t *testing.T) int {
	runtime.GC()
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

func TestTenThousandContexts(t *testing.T) {
	desc := describe(16)
	p := newProblem(t, desc, 1, 0)
	round := func(contexts int) {
		for range contexts {
			config := ringattn.NewContextConfig()
			config.NumThreads = 1
			c, err := ringattn.NewContext(config)
			if err == nil {
				err = c.Forward(background, desc, p.forward())
			}
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
	}
	contexts := 10000
	if underRace {
		contexts = 1000 // its own memory grows with them
	}
	round(contexts / 10)
	before := residentBytes(t)
	round(contexts)
	grown := residentBytes(t) - before
	t.Logf("%d contexts, resident memory grew by %d KiB", contexts, grown/1024)
	if grown > 2<<20 && !underRace {
		t.Errorf("resident memory grew by %d bytes; must be 2 MiB at most", grown)
	}
}

// ---------------------------------------------------------------- version

// A library that says another version than it has makes every call an error that names both.
func TestRefusesAnotherVersion(t *testing.T) {
	const child = "RINGATTN_TEST_OTHER_VERSION"
	if os.Getenv(child) != "" {
		_, err := ringattn.NewContext(ringattn.NewContextConfig())
		mustBe(t, err, ringattn.ErrNotSupported, "99.1.0", "major")
		_, err = ringattn.GetCapabilities()
		mustBe(t, err, ringattn.ErrNotSupported)
		return
	}
	source, other := filepath.Join(t.TempDir(), "version.c"), filepath.Join(t.TempDir(), "libversion.so")
	if err := os.WriteFile(source, []byte("int ra_get_version(void) { return 990100; }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.Command("cc", "-shared", "-fPIC", "-o", other, source).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	command := exec.Command(os.Args[0], "-test.run=^TestRefusesAnotherVersion$", "-test.count=1")
	command.Env = append(os.Environ(), child+"=1", "LD_PRELOAD="+other)
	if output, err := command.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, output)
	}
}

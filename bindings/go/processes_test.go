package ringattn_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"ringattn.dev/go/ringattn"
)

// A ring of three over ZeroMQ: two ranks of this process, and one of another, which is killed or stopped, while goroutines here recover
// from nil dereferences.

const (
	fellowVariable = "RINGATTN_TEST_FELLOW" // the rank that a process of this program is to be
	fellows        = int32(3)
)

// work makes calls, forward and then forward or backward only, until one fails; begun is called after the first.
func work(c *ringattn.Context, p problem, backward bool, begun func()) error {
	err := c.Forward(background, p.desc, p.forward())
	if err == nil {
		begun()
	}
	for err == nil {
		if backward {
			err = c.Backward(background, p.desc, p.backward())
		} else {
			err = c.Forward(background, p.desc, p.forward())
		}
	}
	return err
}

// What the other process does. It reads its orders, says that it is at work, and ends with the one that started it.
func TestFellow(t *testing.T) {
	rank, err := strconv.Atoi(os.Getenv(fellowVariable))
	if err != nil {
		t.Skip("of TestPeersInOtherProcessesEnd")
	}
	orders := bufio.NewScanner(os.Stdin)
	orders.Scan()
	backward := orders.Text() == "backward"
	orders.Scan()
	id := orders.Text()
	go func() {
		for orders.Scan() {
		}
		os.Exit(1)
	}()
	c, err := join(ringattn.TransportZeroMQ, id, fellows, int32(rank))
	if err != nil {
		t.Fatal(err)
	}
	t.Log(work(c, newProblem(t, describe(64), fellows, int32(rank)), backward, func() { os.Stdout.WriteString("works\n") }))
}

// startFellow returns the process, and what it says.
func startFellow(t *testing.T, rank int32, order, id string) (*exec.Cmd, *bufio.Reader) {
	command := exec.Command(os.Args[0], "-test.run=^TestFellow$", "-test.count=1")
	command.Env = append(os.Environ(), fellowVariable+"="+strconv.Itoa(int(rank)))
	orders, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		command.Process.Kill()
		command.Wait()
	})
	if _, err := io.WriteString(orders, order+"\n"+id+"\n"); err != nil {
		t.Fatal(err)
	}
	return command, bufio.NewReader(output)
}

// dereferenceNil recovers from one nil dereference after another until it is told to end; it counts them.
func dereferenceNil(over *atomic.Bool, recovered *atomic.Int64) {
	for !over.Load() {
		func() {
			defer func() {
				if _, is := recover().(runtime.Error); is {
					recovered.Add(1)
				}
			}()
			var none *problem
			none.of = nil
		}()
	}
}

func TestPeersInOtherProcessesEnd(t *testing.T) {
	if capabilities, err := ringattn.GetCapabilities(); err != nil || !capabilities.HasZeroMQ {
		t.Skip("no ZeroMQ here")
	}
	for _, cell := range []struct {
		order  string
		signal syscall.Signal
		victim int32
	}{{"forward", syscall.SIGKILL, 0}, {"backward", syscall.SIGSTOP, 1}} {
		t.Run(cell.order+" "+cell.signal.String(), func(t *testing.T) {
			id, err := ringattn.NewUniqueID(ringattn.TransportZeroMQ, "")
			if err != nil {
				t.Fatal(err)
			}
			victim, says := startFellow(t, cell.victim, cell.order, id)
			var over atomic.Bool
			var recovered atomic.Int64
			var dereferencing sync.WaitGroup
			dereferencing.Add(1)
			go func() {
				defer dereferencing.Done()
				dereferenceNil(&over, &recovered)
			}()
			defer over.Store(true)

			news := make(chan error, 2*fellows) // nil from each that is at work, and whatever ends one
			go func() {
				if line, err := says.ReadString('\n'); line != "works\n" {
					news <- fmt.Errorf("the peer says %q: %v", line, err)
				} else {
					news <- nil
				}
			}()
			var failures, reasons [fellows]error
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				onEveryRank(fellows, func(rank int32) error {
					if rank == cell.victim {
						return nil
					}
					c, err := join(ringattn.TransportZeroMQ, id, fellows, rank)
					if err == nil {
						defer c.Close()
						p := newProblem(t, describe(64), fellows, rank)
						err = work(c, p, cell.order == "backward", func() { news <- nil })
						reasons[rank] = c.AsyncError()
					}
					failures[rank] = err
					news <- err
					return nil
				})
			}()
			for range fellows {
				if err := <-news; err != nil {
					t.Fatalf("before the peer is struck: %v", err) // whoever waits for what has failed is left to it
				}
			}
			recovered.Store(0)
			for recovered.Load() < 1000 { // while the ring runs
				runtime.Gosched()
			}
			if err := victim.Process.Signal(cell.signal); err != nil {
				t.Error(err)
			}
			inTime(t, "finding out", func() { <-ended })
			over.Store(true)
			dereferencing.Wait()
			for rank, err := range failures {
				var failure *ringattn.Error
				if int32(rank) == cell.victim {
					continue
				}
				mustBe(t, reasons[rank], ringattn.ErrPeerLost)
				if !errors.As(err, &failure) || failure.Rank != cell.victim || (failure.Status != ringattn.StatusPeerLost &&
					!strings.Contains(failure.Message, "PEER_LOST")) { // it broke between two calls
					t.Errorf("rank %d says %v; must name rank %d", rank, err, cell.victim)
				}
			}

			// This process can do all that it could.
			var hashes []string
			for _, transport := range []ringattn.Transport{ringattn.TransportLocal, ringattn.TransportZeroMQ} {
				group := newGroupOver(t, transport, 2)
				err := onEveryRank(2, func(rank int32) error {
					p := newProblem(t, describe(64), 2, rank)
					if err := group[rank].Forward(background, p.desc, p.forward()); err != nil {
						return err
					}
					if rank == 1 {
						hashes = append(hashes, p.of["out"].hash())
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
			if len(hashes) != 2 || hashes[0] != hashes[1] {
				t.Errorf("results of threads and of a ring over ZeroMQ: %q", hashes)
			}
		})
	}
}

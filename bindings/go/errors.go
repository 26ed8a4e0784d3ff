package ringattn

// #include <ringattn/ringattn.h>
import "C"

import (
	"fmt"
	"strings"
)

// Error says where and why a call failed. errors.Is finds its status, as [ErrTimeout], and in that of a cancelled call also why that
// was, as context.Canceled.
type Error struct {
	Status Status
	// The rank that broke the group, the same on every rank; -1 where no single one did, and where the failure is of this call alone,
	// as refused arguments are.
	Rank int32
	// cudaError_t, 0 if none.
	CUDAError int32
	// ncclResult_t, 0 if none.
	NCCLResult int32
	// The field that was wrong, its value and the limit.
	Message string

	causes []error
}

func (e *Error) Error() string {
	text := fmt.Sprintf("ringattn: %v: %s", e.Status, e.Message)
	for _, cause := range e.causes {
		text += ": " + cause.Error()
	}
	return text
}

// Is holds for the error of the same status.
func (e *Error) Is(target error) bool {
	status, ok := target.(statusError)
	return ok && Status(status) == e.Status
}

// Unwrap has, where the call's context.Context was done, its error, and what the call itself said, if that is of another status.
func (e *Error) Unwrap() []error { return e.causes }

type statusError Status

func (s statusError) Error() string { return "ringattn: " + Status(s).String() }

// errorOf is nil on success.
func errorOf(raw *C.ra_error) error {
	if raw.status == C.RA_STATUS_SUCCESS {
		return nil
	}
	return &Error{Status(raw.status), int32(raw.rank), int32(raw.cuda_error), int32(raw.nccl_result), C.GoString(&raw.message[0]), nil}
}

func parseEnum[E interface {
	~int32
	String() string
}](x *E, text []byte, choices ...E) error {
	names := make([]string, len(choices))
	for i, choice := range choices {
		if names[i] = choice.String(); strings.EqualFold(names[i], string(text)) {
			*x = choice
			return nil
		}
	}
	return fmt.Errorf("ringattn: %q is none of %s", text, strings.Join(names, ", "))
}

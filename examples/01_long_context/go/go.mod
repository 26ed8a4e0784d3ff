module example_01_long_context

go 1.24

require ringattn.dev/go/ringattn v0.0.0

replace ringattn.dev/go/ringattn => ../../../bindings/go

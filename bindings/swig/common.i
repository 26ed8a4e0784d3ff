// What every language makes of ringattn.h: functions and structs, without what a language has better words for.
%module RingAttn

%{
#include <ringattn/ringattn.h>
%}

%include <stdint.i>
#define __attribute__(x)

// Enums become the language's own (bindings/generate), and an error becomes what the language raises.
%rename("$ignore", %$isenum) "";
%rename("$ignore", %$isenumitem) "";
%ignore ra_error;
%ignore ra_get_status_name;
%ignore RA_API;

// Structs are memory that the layer above provides: no constructors, no destructors, nothing that frees.
%nodefaultctor;
%nodefaultdtor;

// raForward, RaForwardArgs, getHeadDim
%rename("%(lowercamelcase)s", %$isfunction) "";
%rename("%(lowercamelcase)s", %$isvariable) "";
%rename("%(camelcase)s", %$isclass) "";
%rename("$ignore", %$isvariable, regexmatch$name="^(struct_size|reserved)$") "";

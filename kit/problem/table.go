package problem

import "net/http"

// row is how one kind of failure looks to a program: on an HTTP wire, on a Connect wire and as a process's exit status.
type row struct {
	http int
	rpc  string
	exit int
}

// The RPC words are the Connect protocol's; the exit codes are the CLI's contract with scripts.
var table = map[Code]row{
	Invalid:         {http.StatusBadRequest, "invalid_argument", 2},
	NotFound:        {http.StatusNotFound, "not_found", 3},
	Denied:          {http.StatusForbidden, "permission_denied", 4},
	Unauthenticated: {http.StatusUnauthorized, "unauthenticated", 5},
	Conflict:        {http.StatusConflict, "already_exists", 6},
	Unavailable:     {http.StatusServiceUnavailable, "unavailable", 7},
	Exhausted:       {http.StatusTooManyRequests, "resource_exhausted", 7},
	Timeout:         {http.StatusGatewayTimeout, "deadline_exceeded", 124},
	Internal:        {http.StatusInternalServerError, "internal", 1},
}

// HTTPStatus is the status of a plain HTTP answer.
func (c Code) HTTPStatus() int { return lookup(c).http }

// RPC is the Connect code's name.
func (c Code) RPC() string { return lookup(c).rpc }

// Exit is the process's exit status.
func (c Code) Exit() int { return lookup(c).exit }

// FromRPC is the code that a Connect code's name stands for.
func FromRPC(name string) Code {
	switch name {
	case "failed_precondition", "aborted":
		return Conflict
	case "out_of_range":
		return Invalid
	case "canceled":
		return Timeout
	case "unimplemented", "unknown", "data_loss":
		return Internal
	}
	for c, r := range table {
		if r.rpc == name {
			return c
		}
	}
	return Internal
}

func lookup(c Code) row {
	if r, ok := table[c]; ok {
		return r
	}
	return table[Internal]
}

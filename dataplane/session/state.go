package session

const kindState byte = 3

// SealState seals what a client is to bring back unread. It says nothing of whose it is: that is for the text to say, and
// for the caller to compare.
func (s *Sessions) SealState(plain []byte) string { return s.keys.Load().seal(kindState, plain) }

// OpenState reads what SealState made, on any node that shares the keys; ErrUnknown for anything else.
func (s *Sessions) OpenState(text string) ([]byte, error) {
	if len(text) > MaxID {
		return nil, ErrUnknown
	}
	return s.open(kindState, text)
}

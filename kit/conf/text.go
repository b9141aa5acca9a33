package conf

import (
	"fmt"

	"gopkg.in/yaml.v3"
)

// Text is a configuration as a file has it: the yaml tags of v say what is in it.
func Text(v any) ([]byte, error) {
	b, err := yaml.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("write a configuration: %w", err)
	}
	return b, nil
}

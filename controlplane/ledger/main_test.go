package ledger_test

import (
	"os"
	"testing"

	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

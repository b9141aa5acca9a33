package ports

import (
	"net"
	"strconv"
	"sync"
	"testing"
)

func TestHoldersAtTheSameTimeHaveDifferentBlocks(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	bases := map[int]bool{}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			b, err := Take()
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { _ = b.Close() })
			mu.Lock()
			defer mu.Unlock()
			if bases[b.Base] {
				t.Errorf("block %d was given to two", b.Base)
			}
			bases[b.Base] = true
		})
	}
	wg.Wait()
}

func TestABlockThatIsHeldOrHasATakenPortIsLeftOut(t *testing.T) {
	t.Parallel()
	b, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	used, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(b.Base+7)))
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	if other := take(b.Base); other != nil {
		t.Fatal("a block that is held was given away")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if other := take(b.Base); other != nil {
		t.Fatal("a block of which a port is in use was given away")
	}
}

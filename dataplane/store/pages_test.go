package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

// buildDB makes a database with branches, overflow pages, inline buckets and free pages.
func buildDB(t testing.TB, path string) {
	t.Helper()
	db, err := OpenDB(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		err = db.Update(func(tx *bbolt.Tx) error {
			for _, name := range []string{"big", "small", "empty"} {
				if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
					return err
				}
			}
			for i := range 300 {
				v := bytes.Repeat([]byte{byte(i)}, 100+round*50)
				if i%60 == 0 {
					v = bytes.Repeat(v, 100)
				}
				if err := tx.Bucket([]byte("big")).Put(fmt.Appendf(nil, "%04d", i*7%300), v); err != nil {
					return err
				}
			}
			for i := range 100 {
				if err := tx.Bucket([]byte("big")).Delete(fmt.Appendf(nil, "%04d", i*round)); err != nil {
					return err
				}
			}
			return tx.Bucket([]byte("small")).Put([]byte("k"), []byte("v"))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestEveryDatabaseThatBboltWritesPasses(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	buildDB(t, path)
	if err := checkPages(path, os.Getpagesize()); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	random := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		err := db.Update(func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte("big"))
			for range 30 {
				key := fmt.Appendf(nil, "%04d", random.IntN(2000))
				if random.IntN(3) == 0 {
					if err := b.Delete(key); err != nil {
						return err
					}
				} else if err := b.Put(key, make([]byte, random.IntN(9000))); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			err = checkPages(path, os.Getpagesize())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever a flip does to the pages, reading the database afterwards ends, without a crash.
func TestADamagedPageNeverLeadsAstray(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	buildDB(t, path)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(3, 4))
	found := 0
	for i := range 600 {
		bad := bytes.Clone(good)
		at := random.IntN(len(bad))
		if i%2 == 0 {
			// Where the structure is: headers and element tables.
			at = random.IntN(len(bad)/os.Getpagesize())*os.Getpagesize() + random.IntN(256)
		}
		bad[at] ^= 1 << random.IntN(8)
		p := filepath.Join(t.TempDir(), "y.db")
		if err := os.WriteFile(p, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := OpenDB(p, 0)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("byte %d: %v", at, err)
			}
			found++
			continue
		}
		err = Guard(func() error {
			return db.View(func(tx *bbolt.Tx) error {
				return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
					return b.ForEach(func(_, _ []byte) error { return nil })
				})
			})
		})
		if err != nil {
			t.Errorf("byte %d: %v after the check", at, err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of 600 flips met the structure", found)
}

func FuzzCheckPages(f *testing.F) {
	path := filepath.Join(f.TempDir(), "x.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{PageSize: 1024})
	if err != nil {
		f.Fatal(err)
	}
	err = errors.Join(db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte("b"))
		if err != nil {
			return err
		}
		return b.Put([]byte("k"), make([]byte, 3000))
	}), db.Close())
	if err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good[:16<<10])
	f.Fuzz(func(t *testing.T, data []byte) {
		p := filepath.Join(t.TempDir(), "y.db")
		if err := os.WriteFile(p, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_ = checkPages(p, 1024)
	})
}

package servers

import (
	"context"
	"os"
	"path/filepath"

	"github.com/respaldo-backup/respaldo/lab/debian"
)

// Mydumper fetches mydumper and myloader into the cache, as Ensure does servers, and returns
// mydumper's path; myloader lies beside it.
func Mydumper(ctx context.Context) (string, error) {
	const name = "mydumper"
	r := recipe{suites: [][]string{{"bookworm", "bookworm-updates", "bookworm-security"}}, install: []string{"mydumper", "libc-bin"}}
	dir := home(name)
	if ready(dir, r) {
		return Binary(name, name), nil
	}
	if err := tools(r); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	unlock, err := debian.Lock(ctx, dir+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if ready(dir, r) {
		return Binary(name, name), nil
	}
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if _, err := fetch(ctx, name, r, tmp); err != nil {
		return "", err
	}
	if err := wrap(tmp, r); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(tmp, "recipe"), []byte(r.id()), 0o644); err != nil {
		return "", err
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return Binary(name, name), os.Rename(tmp, dir)
}

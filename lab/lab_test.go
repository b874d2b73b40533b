//go:build lab

package lab_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/respaldo-backup/respaldo/lab"
)

func TestWedged(t *testing.T) {
	start := time.Now()
	g, err := lab.Boot(context.Background(), lab.Spec{Name: "wedged", Argv: []string{"/usr/bin/sh", "-c", "echo here; ls /cache /opt/lab /src; lvm version; exec sleep 1000"}, Deadline: 10 * time.Second,
		OnLine: func(l string) { t.Log(time.Since(start), l) }})
	if err != nil {
		t.Fatal(err)
	}
	_, err = g.Wait()
	if err == nil || !strings.Contains(err.Error(), g.Console()) {
		t.Errorf("got %v", err)
	}
	t.Log(err)
}

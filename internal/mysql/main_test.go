package mysql

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	InstanceMain() // the instances that tests start are this program
	os.Exit(m.Run())
}

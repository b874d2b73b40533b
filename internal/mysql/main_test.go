package mysql

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	InstanceMain() // the instances that tests start are this program
	code := m.Run()
	stopOrigins()
	os.Exit(code)
}

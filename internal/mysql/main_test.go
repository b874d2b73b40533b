package mysql

import (
	"flag"
	"os"
	"testing"
)

// testSecret is in our environment, and must not get into any other.
const testSecret = "RESPALDO_TEST_SECRET=not-for-servers"

func TestMain(m *testing.M) {
	InstanceMain() // the instances that tests start are this program
	if request := os.Getenv(holdVariable); request != "" {
		holdInstance(request)
	}
	if socket := os.Getenv(elsewhereVariable); socket != "" {
		connectElsewhere(socket)
	}
	if file := os.Getenv(pauseVariable); file != "" {
		pauseHere(file)
	}
	flag.Parse()
	flag.Set("test.parallel", "6") // servers wait for their disk and their threads more than they compute
	os.Setenv("RESPALDO_TEST_SECRET", "not-for-servers")
	code := m.Run()
	stopOrigins()
	os.Exit(code)
}

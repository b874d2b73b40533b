//go:build guest

package volume

import "time"

// Suspensions are how long a device was suspended while f ran, each time.
func Suspensions(s *System, device string, f func()) (each []time.Duration) {
	start := time.Now()
	w := s.watchSuspensions(device)
	f()
	w.end()
	for _, span := range w.since(start) {
		each = append(each, span.to.Sub(span.from))
	}
	return each
}

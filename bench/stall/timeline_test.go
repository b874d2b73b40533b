package stall

import (
	"slices"
	"testing"
	"time"
)

const ms = time.Millisecond

// at makes commits of the given times, in milliseconds.
func at(times ...int) (list []commit) {
	for _, t := range times {
		list = append(list, commit{at: time.Duration(t) * ms})
	}
	return list
}

func TestLongestGap(t *testing.T) {
	for name, c := range map[string]struct {
		commits []commit
		within  span
		want    span
	}{
		"between two commits":         {at(5, 10, 60, 70), span{0, 80 * ms}, span{10 * ms, 60 * ms}},
		"the first of two equal ones": {at(10, 20), span{0, 30 * ms}, span{0, 10 * ms}},
		"up to the first commit":      {at(50, 60), span{0, 70 * ms}, span{0, 50 * ms}},
		"after the last commit":       {at(10, 20), span{0, 90 * ms}, span{20 * ms, 90 * ms}},
		"cut off by the span":         {at(10, 200), span{50 * ms, 100 * ms}, span{50 * ms, 100 * ms}},
		"outside of the span":         {at(0, 500, 510, 520), span{500 * ms, 530 * ms}, span{500 * ms, 510 * ms}},
		"no commit at all":            {nil, span{0, 40 * ms}, span{0, 40 * ms}},
	} {
		if got := longestGap(c.commits, c.within); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestPercentile(t *testing.T) {
	var all []time.Duration
	for i := range 2000 {
		all = append(all, time.Duration(2000-i)*ms)
	}
	for fraction, want := range map[float64]time.Duration{0.5: 1000 * ms, 0.999: 1998 * ms, 1: 2000 * ms, 0: ms} {
		if got := percentile(all, fraction); got != want {
			t.Errorf("%v: %s, want %s", fraction, got, want)
		}
	}
	if got := percentile([]time.Duration{7 * ms, 3 * ms}, 0.999); got != 7*ms {
		t.Errorf("of two: %s", got)
	}
	if percentile(nil, 0.999) != 0 {
		t.Error("of none there is one")
	}
}

func TestPerSlice(t *testing.T) {
	got := perSlice(at(99, 100, 109, 110, 125, 126), span{100 * ms, 126 * ms})
	if want := []int{2, 1, 1}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// A transaction counts when it was acknowledged, with all the time since it was due.
func TestLatencies(t *testing.T) {
	commits := []commit{{10 * ms, ms}, {20 * ms, 15 * ms}, {30 * ms, 2 * ms}}
	if got := latencies(commits, span{15 * ms, 30 * ms}); !slices.Equal(got, []time.Duration{15 * ms}) {
		t.Errorf("%v", got)
	}
}

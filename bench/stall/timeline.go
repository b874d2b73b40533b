package stall

import (
	"slices"
	"time"
)

// commit is a transaction as its client saw it, on the load's own clock.
type commit struct {
	at   time.Duration // when it was acknowledged
	took time.Duration // since it was due, which a client that had to wait for its turn also waited
}

// span is a piece of the load's time.
type span struct{ from, to time.Duration }

func (s span) has(at time.Duration) bool { return s.from <= at && at < s.to }

// longestGap is the longest time within the span in which nothing was committed on any
// connection. What of it lies outside of the span does not count.
func longestGap(commits []commit, within span) (longest span) {
	last := within.from
	see := func(at time.Duration) {
		if at-last > longest.to-longest.from {
			longest = span{last, at}
		}
		last = at
	}
	for _, c := range commits {
		if within.has(c.at) {
			see(c.at)
		}
	}
	see(within.to)
	return longest
}

// percentile is the least duration that a fraction of all of them does not exceed. None is 0.
func percentile(all []time.Duration, fraction float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	rank := int(fraction * float64(len(sorted)))
	if float64(rank) < fraction*float64(len(sorted)) {
		rank++
	}
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// latencies are those of the transactions that were acknowledged within the span.
func latencies(commits []commit, within span) (all []time.Duration) {
	for _, c := range commits {
		if within.has(c.at) {
			all = append(all, c.took)
		}
	}
	return all
}

// perSlice counts the commits of each slice of the span; its last slice may be cut short.
func perSlice(commits []commit, within span) []int {
	counts := make([]int, (within.to-within.from+Slice-1)/Slice)
	for _, c := range commits {
		if within.has(c.at) {
			counts[(c.at-within.from)/Slice]++
		}
	}
	return counts
}

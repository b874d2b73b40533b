package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes as the user writes it, usable as a flag.
type Size int64

// sizeUnits: LVM's single letters are powers of 1024, as in lvcreate.
var sizeUnits = map[string]float64{
	"": 1, "b": 1,
	"k": 1 << 10, "kib": 1 << 10, "kb": 1e3,
	"m": 1 << 20, "mib": 1 << 20, "mb": 1e6,
	"g": 1 << 30, "gib": 1 << 30, "gb": 1e9,
	"t": 1 << 40, "tib": 1 << 40, "tb": 1e12,
}

// ParseSize reads "20GiB", "1.5 TiB", "500m" (1024², as for LVM), "20GB" (10⁹) or a plain
// number of bytes.
func ParseSize(text string) (int64, error) {
	number := strings.TrimRight(strings.TrimSpace(text), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	unit := strings.ToLower(strings.TrimSpace(text)[len(number):])
	value, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	factor, known := sizeUnits[unit]
	if err != nil || !known || !(value > 0) || value*factor >= math.MaxInt64 {
		return 0, fmt.Errorf(`%q is not a size like "20GiB" or "500MiB"`, text)
	}
	return int64(value * factor), nil
}

func (s *Size) Set(text string) error {
	value, err := ParseSize(text)
	*s = Size(value)
	return err
}

// String is exact: the largest unit that divides the size.
func (s Size) String() string {
	if s == 0 {
		return ""
	}
	for _, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if factor := Size(sizeUnits[strings.ToLower(unit)]); s%factor == 0 {
			return fmt.Sprintf("%d%s", s/factor, unit)
		}
	}
	return fmt.Sprintf("%dB", int64(s))
}

// Type names the value in a command's help.
func (s Size) Type() string { return "SIZE" }

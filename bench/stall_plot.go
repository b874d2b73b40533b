package main

func (s *stallSet) plot() string        { return "" }
func (r *stallReport) markdown() string { return "" }

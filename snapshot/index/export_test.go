package index

// ApplyAny is Apply whatever state the delta says that it leads to.
var ApplyAny = apply

// ReadsZone tells which instructions look at a clock.
var ReadsZone = readsZone

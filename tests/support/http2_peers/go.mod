module gopeer

// The oldest Go that tests meet is Debian 12's.
go 1.19

require golang.org/x/net v0.33.0

require golang.org/x/text v0.21.0 // indirect

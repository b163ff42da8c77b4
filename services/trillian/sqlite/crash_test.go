package sqlite

func writeUntilKilled(dir string) {}

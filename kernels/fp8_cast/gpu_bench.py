BENCH = ()

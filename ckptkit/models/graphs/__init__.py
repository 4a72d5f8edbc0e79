"""Built models written as graphs that run without ckptkit, and those graphs run again."""

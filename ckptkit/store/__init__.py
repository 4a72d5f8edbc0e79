"""What is on the disk and how it got there: the cache, the downloads, their integrity."""

"""Log-partition functions and bits per dimension."""

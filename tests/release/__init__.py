"""What `make dist` has built, installed and tried."""

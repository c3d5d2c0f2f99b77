"""What a setting will do, before anything is served: service times measured in process, and a simulated queue."""

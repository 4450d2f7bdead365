"""M tasks, solved in the learned model and with real samples."""

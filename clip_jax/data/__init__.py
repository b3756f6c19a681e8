"""From stored images and captions to batches on the devices."""

"""Records, datasets and the Grain pipeline that turns encoded video and text into batches."""

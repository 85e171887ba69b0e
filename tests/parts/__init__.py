"""What tests of several rooms use: programs started for a test, and ways to ask whether they are there."""

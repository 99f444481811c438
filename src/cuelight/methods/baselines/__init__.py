"""What every paper is measured against."""

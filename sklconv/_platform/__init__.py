"""What this package has from scikit-learn, torch and the machine, their gaps mended."""

"""A trained model that answers, and takes in what users do."""

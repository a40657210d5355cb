"""What people look at: pictures of their own prompts, and the page that draws while they wait."""

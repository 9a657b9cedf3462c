"""What is made of the code: workflows, thumbnails, help pages, translations."""
